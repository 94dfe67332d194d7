// Bodies: a handle of the program as a stream, and a stream into a handle of the program.

import { core, primordials } from "ext:core/mod.js";
import { failure, requestEnded } from "ext:casemate/calls.js";
import { fetchBody, streams } from "ext:casemate/web.js";

const { op_casemate_cancel, op_casemate_finish, op_casemate_gather, op_casemate_pull, op_casemate_write } = core.ops;
const {
  ArrayBufferIsView,
  Error,
  MapPrototypeDelete,
  MapPrototypeGet,
  MapPrototypeSet,
  Promise,
  PromisePrototypeThen,
  SafeMap,
  TypeError,
  TypedArrayPrototypeGetByteLength,
  TypedArrayPrototypeGetSymbolToStringTag,
  TypedArrayPrototypeSubarray,
  Uint8Array,
} = primordials;

// Sent at a time, in bytes: what one write may copy out of the heap.
const PIECE_BYTES = 64 * 1024;

// Handle -> how to go on with the body that waits for its next piece, or, without a controller, for all of it.
const pulls = new SafeMap();
// Handle -> how to go on with the writer that waits.
const writes = new SafeMap();
// Handle -> the reader of the stream that is sent on it.
const readers = new SafeMap();

function noop() {}

// A stream of what arrives on `handle`. Nothing is asked for before somebody reads.
export function receive(handle) {
  return new streams.ReadableStream({
    type: "bytes",
    pull(controller) {
      return new Promise((resolve, reject) => {
        MapPrototypeSet(pulls, handle, { controller, resolve, reject });
        op_casemate_pull(handle);
      });
    },
    cancel() {
      MapPrototypeDelete(pulls, handle);
      op_casemate_cancel(handle);
    },
  }, { highWaterMark: 0 });
}

// All of what arrives on `handle`, in one piece.
function gather(handle) {
  return new Promise((resolve, reject) => {
    MapPrototypeSet(pulls, handle, { controller: null, resolve, reject });
    op_casemate_gather(handle);
  });
}

// A body on its way. It becomes a stream only for who asks for one; who wants all of it gets it in one piece.
export class ArrivingBody extends fetchBody.InnerBody {
  #handle;
  // Nobody has asked for any of it yet.
  #isWhole = true;

  constructor(handle) {
    super({ body: undefined, consumed: false });
    this.#handle = handle;
  }

  #open() {
    if (this.#isWhole) {
      this.#isWhole = false;
      this.streamOrStatic = receive(this.#handle);
    }
  }

  get stream() {
    this.#open();
    return super.stream;
  }

  consume() {
    if (!this.#isWhole) {
      return super.consume();
    }
    this.#isWhole = false;
    this.streamOrStatic.consumed = true;
    return gather(this.#handle);
  }

  cancel(error) {
    this.#open();
    super.cancel(error);
  }

  error(error) {
    const waiting = MapPrototypeGet(pulls, this.#handle);
    if (waiting?.controller === null) {
      MapPrototypeDelete(pulls, this.#handle);
      waiting.reject(error);
      return;
    }
    this.#open();
    super.error(error);
  }

  clone() {
    this.#open();
    return super.clone();
  }

  createProxy() {
    this.#open();
    return super.createProxy();
  }
}

// The program: the next piece of a body, `null` at its end, `undefined` when it broke off: the answer to a call with a
// code and a message.
export function arrived(handle, piece, code, message) {
  const waiting = MapPrototypeGet(pulls, handle);
  if (waiting === undefined) {
    return;
  }
  MapPrototypeDelete(pulls, handle);
  const { controller, resolve, reject } = waiting;
  if (piece === undefined) {
    reject(code === undefined ? new TypeError("the body was cut off") : failure(code, message));
    return;
  }
  if (controller === null) {
    resolve(piece ?? new Uint8Array());
    return;
  }
  // The controller's methods are what the function has made of them.
  try {
    if (piece === null) {
      controller.close();
      controller.byobRequest?.respond(0);
    } else {
      controller.enqueue(piece);
    }
  } catch (error) {
    reject(error);
    return;
  }
  resolve();
}

// The program: a piece was taken, or nobody wants the body any more.
export function taken(handle, wanted) {
  const waiting = MapPrototypeGet(writes, handle);
  MapPrototypeDelete(writes, handle);
  if (wanted) {
    waiting?.resolve();
    return;
  }
  const error = new Error("the other end does not want the body any more");
  if (waiting !== undefined) {
    waiting.reject(error);
  } else {
    cancel(MapPrototypeGet(readers, handle), error);
  }
}

function cancel(reader, error) {
  if (reader !== undefined) {
    PromisePrototypeThen(reader.cancel(error), noop, noop);
  }
}

function write(handle, piece) {
  return new Promise((resolve, reject) => {
    MapPrototypeSet(writes, handle, { resolve, reject });
    op_casemate_write(handle, piece);
  });
}

// The program: the request that has this body is over.
export function dropped(handle) {
  const pull = MapPrototypeGet(pulls, handle);
  const write = MapPrototypeGet(writes, handle);
  MapPrototypeDelete(pulls, handle);
  MapPrototypeDelete(writes, handle);
  MapPrototypeDelete(readers, handle);
  pull?.reject(requestEnded("to read this body"));
  write?.reject(requestEnded("to send this body"));
}

// Sends all of `stream` on `handle`, piece by piece as the other end takes it. Rejects with what
// the stream failed with; `handle` is then still open.
export async function send(stream, handle) {
  const reader = streams.acquireReadableStreamDefaultReader(stream);
  MapPrototypeSet(readers, handle, reader);
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) {
        break;
      }
      if (!ArrayBufferIsView(value) || TypedArrayPrototypeGetSymbolToStringTag(value) !== "Uint8Array") {
        throw new TypeError("a body's stream must give Uint8Array pieces");
      }
      const length = TypedArrayPrototypeGetByteLength(value);
      for (let from = 0; from < length; from += PIECE_BYTES) {
        await write(handle, TypedArrayPrototypeSubarray(value, from, from + PIECE_BYTES));
      }
    }
    op_casemate_finish(handle);
  } catch (error) {
    cancel(reader, error);
    throw error;
  } finally {
    MapPrototypeDelete(readers, handle);
  }
}
