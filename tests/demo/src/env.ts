/** A credential slot: calls go out with the key, and the key never comes in. */
export interface Slot {
  fetch(input: string | URL | Request, init?: RequestInit): Promise<Response>;
}

/** What casemate.toml declares. */
export interface Env {
  GREETING: string;
  VERSION: string;
  payments: Slot;
}
