/** Everything of `env` that code can reach, as text: this is where a key would show. */
export function inspect(env: object): Record<string, unknown> {
  const found: Record<string, unknown> = {};
  for (const key of Reflect.ownKeys(env)) {
    const value = Reflect.get(env, key);
    found[String(key)] = typeof value === "object" ? Reflect.ownKeys(value).map(String) : value;
  }
  return found;
}
