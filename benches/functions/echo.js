// Reads a body of 64 KiB to its end and sends it back.
export default {
  async fetch(request) {
    return new Response(await request.arrayBuffer());
  },
};
