import { Hono } from "hono";
import { charge } from "./payments";
import type { Env } from "./env";
import { inspect } from "./inspect";

const app = new Hono<{ Bindings: Env }>();

app.get("/", (c) => c.text(`${c.env.GREETING}, this is version ${c.env.VERSION}\n`));
app.get("/charge/:amount", async (c) => c.json(await charge(c.env, Number(c.req.param("amount")))));
app.get("/environment", (c) => c.json(inspect(c.env)));

export default app;
