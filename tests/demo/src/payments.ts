import type { Env } from "./env";

/** What the caller reads of a charge. */
export interface Charge {
  amount: number;
  upstream_status: number;
  upstream: unknown;
}

/** Calls the payment provider. The vault adds the key on the way out. */
export async function charge(env: Env, amount: number): Promise<Charge> {
  const response = await env.payments.fetch("/v1/charges", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ amount }),
  });
  return { amount, upstream_status: response.status, upstream: await response.json() };
}
