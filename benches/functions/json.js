// JSON in and JSON out, each of about 1 KiB.
export default {
  async fetch(request) {
    const order = await request.json();
    const lines = order.lines.map((line) => ({ ...line, total: line.price * line.count }));
    const total = lines.reduce((sum, line) => sum + line.total, 0);
    return Response.json({ ...order, lines, total });
  },
};
