// Streams 10 MB in pieces of 64 KiB, each made when the reader asks for it.
const PIECE = new Uint8Array(64 * 1024).fill(97);
const PIECES = 160;
export default {
  fetch() {
    let left = PIECES;
    const body = new ReadableStream({
      pull(controller) {
        if (left === 0) return controller.close();
        left -= 1;
        controller.enqueue(PIECE);
      },
    });
    return new Response(body);
  },
};
