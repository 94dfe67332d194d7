// An app with the hono router: twelve routes, parameters, a middleware.
import { Hono } from "hono";
const app = new Hono();
let calls = 0;
app.use(async (context, next) => {
  calls += 1;
  await next();
  context.header("x-calls", String(calls));
});
for (const kind of ["users", "orders", "items", "carts", "prices"]) {
  app.get(`/${kind}`, (context) => context.json({ kind, list: [] }));
  app.get(`/${kind}/:id`, (context) => context.json({ kind, id: context.req.param("id"), agent: context.req.header("user-agent") }));
}
app.get("/orders/:id/lines/:line", (context) => context.json(context.req.param()));
app.notFound((context) => context.json({ error: "no such route" }, 404));
export default app;
