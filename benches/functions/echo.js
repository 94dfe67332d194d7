// A body of 64 KiB, read whole and sent back.
export default {
  async fetch(request) {
    return new Response(await request.arrayBuffer());
  },
};
