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

// Bytes that are sent at a time: what one write may copy out of the heap.
const PIECE_BYTES = 64 * 1024;

// Handle -> continuation of the body that waits for its next piece, or, without a controller, for
// all of it.
const pulls = new SafeMap();
// Handle -> continuation of the writer that waits.
const writes = new SafeMap();
// Handle -> the reader of the stream that is sent on it.
const readers = new SafeMap();

function noop() {}

// A stream of the bytes that arrive on `handle`. Nothing is requested before the stream is read.
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

// Resolves with all bytes that arrive on `handle`, in one piece.
function gather(handle) {
  return new Promise((resolve, reject) => {
    MapPrototypeSet(pulls, handle, { controller: null, resolve, reject });
    op_casemate_gather(handle);
  });
}

// A body on its way. It becomes a stream only when one is asked for; a reader of the whole body
// gets one piece.
export class ArrivingBody extends fetchBody.InnerBody {
  #handle;
  // No part of the body has been asked for yet.
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

// Called by the program: the next piece of a body, `null` at its end, `undefined` when it broke
// off; the answer to a call then has a code and a message.
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
  // The function may have replaced the controller's methods.
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

// Called by the program: a piece was taken, or the body is not wanted any more.
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

// Called by the program: the request that has this body has ended.
export function dropped(handle) {
  const pull = MapPrototypeGet(pulls, handle);
  const write = MapPrototypeGet(writes, handle);
  MapPrototypeDelete(pulls, handle);
  MapPrototypeDelete(writes, handle);
  MapPrototypeDelete(readers, handle);
  pull?.reject(requestEnded("to read this body"));
  write?.reject(requestEnded("to send this body"));
}

// Sends all of `stream` on `handle`, piece by piece as the other end takes it. Rejects with the
// stream's error; `handle` is then still open.
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
