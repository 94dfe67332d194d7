// `fetch` and the capabilities of `env`. The vault judges every hop of a redirect afresh.

import { core, internals, primordials } from "ext:core/mod.js";
import { ArrivingBody, receive, send } from "ext:casemate/body.js";
import { currentRequest, failure, flatten, requestEnded, unflatten } from "ext:casemate/calls.js";
import { isLocal, local } from "ext:casemate/local.js";
import { abortSignal, compression, fetchBody, request, response, streams, url, webidl } from "ext:casemate/web.js";

const { op_casemate_cancel, op_casemate_fetch } = core.ops;
const {
  ArrayPrototypeFilter,
  ArrayPrototypePush,
  MapPrototypeDelete,
  MapPrototypeGet,
  MapPrototypeSet,
  ObjectPrototypeIsPrototypeOf,
  Promise,
  PromisePrototypeThen,
  RegExpPrototypeTest,
  SafeMap,
  SafeRegExp,
  SafeWeakMap,
  StringPrototypeSplit,
  StringPrototypeStartsWith,
  StringPrototypeToLowerCase,
  StringPrototypeTrim,
  TypeError,
  TypedArrayPrototypeGetByteLength,
  TypedArrayPrototypeSubarray,
  Uint8Array,
  WeakMapPrototypeGet,
  WeakMapPrototypeSet,
} = primordials;

// The limit of browsers.
const MAX_HOPS = 20;
// Values of `op_casemate_fetch` other than a handle.
const TOO_MANY_CALLS = 0;
const NO_CALL = 0xffffffff;
// The value of `currentRequest` outside of a request.
const NO_REQUEST = 0;
const NO_BODY = new Uint8Array();
const BODY_HEADERS = { __proto__: null, "content-encoding": 1, "content-language": 1, "content-location": 1, "content-type": 1 };
const CREDENTIAL_HEADERS = { __proto__: null, authorization: 1, cookie: 1, "proxy-authorization": 1 };
// Content coding -> format of a DecompressionStream. Only gzip is asked for, but upstreams send
// others too.
const FORMATS = { __proto__: null, gzip: "gzip", "x-gzip": "gzip", deflate: "deflate", br: "brotli" };
// Most codings on top of each other that are decoded: each may enlarge a body a thousand times.
const MAX_CODINGS = 2;
// Bytes that one decoder passes to the next at a time.
const DECODED_PIECE = 16 * 1024;
// Fields of an answer that describe its encoded body.
const ENCODED_HEADERS = {
  __proto__: null, "content-encoding": 1, "content-length": 1, "content-digest": 1, "content-md5": 1, digest: 1, "repr-digest": 1,
};
const PARTIAL_CONTENT = 206;
// The weight of a coding that is not accepted.
const NO_WEIGHT = new SafeRegExp(/^q *= *0(\.0*)?$/);

// Handle -> continuation of the call that waits for its response.
const calls = new SafeMap();
// Error of a call -> failure of a request that does not catch it, in the program's numbers.
const failures = new SafeWeakMap();

// Returns 0 for an error that is not a call's.
export function failureOf(error) {
  return typeof error === "object" && error !== null ? WeakMapPrototypeGet(failures, error) ?? 0 : 0;
}

// Called by the program: the head of a response. `body` is 0 when there is none.
export function answered(handle, status, headers, body) {
  const call = MapPrototypeGet(calls, handle);
  if (call === undefined) {
    if (body !== 0) {
      op_casemate_cancel(body);
    }
    return;
  }
  MapPrototypeDelete(calls, handle);
  call.resolve({ status, headerList: unflatten(headers), body });
}

// Called by the program: there will be no response.
export function refused(handle, code, message, uncaught) {
  const call = MapPrototypeGet(calls, handle);
  if (call === undefined) {
    return;
  }
  MapPrototypeDelete(calls, handle);
  call.resolve({ code, message, uncaught });
}

// Called by the program: the request that made this call has ended.
export function abandoned(handle) {
  const call = MapPrototypeGet(calls, handle);
  MapPrototypeDelete(calls, handle);
  call?.reject(requestEnded("this outgoing call"));
}

// The body of a hop: [kind, bytes, stream].
function bodyOf(inner) {
  if (inner.body === null) {
    return [0, NO_BODY, null];
  }
  const { streamOrStatic } = inner.body;
  const whole = streamOrStatic.body;
  if (whole === undefined) {
    return [2, NO_BODY, inner.body.stream];
  }
  return [1, typeof whole === "string" ? core.encode(whole) : whole, null];
}

function hop(inner, binding, signal) {
  const [kind, bytes, stream] = bodyOf(inner);
  const handle = op_casemate_fetch(
    currentRequest(), binding, inner.method, inner.currentUrl(), flatten(fieldsOf(inner)), kind, bytes,
  );
  if (handle === TOO_MANY_CALLS) {
    throw failure("subrequest_limit", "this request has used up its outgoing calls");
  }
  if (handle === NO_CALL && currentRequest() !== NO_REQUEST) {
    throw requestEnded("the code that makes this outgoing call");
  }
  if (handle === NO_CALL) {
    throw failure("no_request", "outgoing calls can be made only while a request is handled");
  }
  return new Promise((resolve, reject) => {
    const abort = () => {
      MapPrototypeDelete(calls, handle);
      op_casemate_cancel(handle);
      reject(signal.reason);
    };
    signal?.[abortSignal.add](abort);
    const settled = (go) => (value) => {
      signal?.[abortSignal.remove](abort);
      go(value);
    };
    MapPrototypeSet(calls, handle, { resolve: settled(resolve), reject: settled(reject) });
    if (stream !== null) {
      PromisePrototypeThen(send(stream, handle), undefined, (error) => {
        op_casemate_cancel(handle);
        if (MapPrototypeDelete(calls, handle)) {
          reject(error);
        }
      });
    }
  });
}

function header(list, name) {
  for (let i = 0; i < list.length; i++) {
    if (StringPrototypeToLowerCase(list[i][0]) === name) {
      return list[i][1];
    }
  }
  return null;
}

function without(list, names) {
  return ArrayPrototypeFilter(list, (field) => names[StringPrototypeToLowerCase(field[0])] === undefined);
}

// Turns `inner` into the request of the next hop, by the Fetch standard (HTTP-redirect fetch).
function redirect(inner, status, from, to) {
  const { method } = inner;
  if (status !== 303 && inner.body !== null && inner.body.streamOrStatic.body === undefined) {
    throw new TypeError("a redirect cannot be followed with a body that is a stream");
  }
  if ((status === 303 && method !== "GET" && method !== "HEAD") || ((status === 301 || status === 302) && method === "POST")) {
    inner.method = "GET";
    inner.body = null;
    inner.headerList = without(inner.headerList, BODY_HEADERS);
  }
  if (from.origin !== to.origin) {
    inner.headerList = without(inner.headerList, CREDENTIAL_HEADERS);
  }
  const href = to.href;
  ArrayPrototypePush(inner.urlList, () => href);
  ArrayPrototypePush(inner.urlListProcessed, href);
  inner.redirectCount++;
}

// The items of a list field, in lower case.
function items(list, name) {
  const all = [];
  for (let i = 0; i < list.length; i++) {
    if (StringPrototypeToLowerCase(list[i][0]) === name) {
      const parts = StringPrototypeSplit(StringPrototypeToLowerCase(list[i][1]), ",");
      for (let j = 0; j < parts.length; j++) {
        ArrayPrototypePush(all, StringPrototypeTrim(parts[j]));
      }
    }
  }
  return all;
}

// The fields of a call. A function often forwards its caller's `Accept-Encoding`, but the caller
// does not read this answer: so gzip is asked for where it is accepted, and no other coding.
function fieldsOf(inner) {
  const accepted = items(inner.headerList, "accept-encoding");
  if (accepted.length === 0) {
    return inner.headerList;
  }
  let asked = "identity";
  for (let i = 0; i < accepted.length; i++) {
    const [coding, ...parameters] = StringPrototypeSplit(accepted[i], ";");
    const name = StringPrototypeTrim(coding);
    const weight = StringPrototypeTrim(parameters[0] ?? "");
    const isRefused = RegExpPrototypeTest(NO_WEIGHT, weight);
    if ((name === "gzip" || name === "x-gzip" || name === "*") && !isRefused) {
      asked = "gzip";
    }
  }
  const list = without(inner.headerList, { __proto__: null, "accept-encoding": 1 });
  ArrayPrototypePush(list, ["accept-encoding", asked]);
  return list;
}

// The codings to decode, the last one first; none when one of them cannot be decoded, or when the
// body is a part of an encoded one.
function formatsOf(answer) {
  const formats = [];
  const codings = answer.status === PARTIAL_CONTENT ? [] : items(answer.headerList, "content-encoding");
  for (let i = codings.length - 1; i >= 0; i--) {
    if (codings[i] === "identity" || codings[i] === "") {
      continue;
    }
    const format = FORMATS[codings[i]];
    if (format === undefined || formats.length === MAX_CODINGS) {
      return [];
    }
    ArrayPrototypePush(formats, format);
  }
  return formats;
}

// Cuts the output of one decoder into pieces for the next.
function cutter() {
  return new streams.TransformStream({
    transform(chunk, controller) {
      const length = TypedArrayPrototypeGetByteLength(chunk);
      for (let from = 0; from < length; from += DECODED_PIECE) {
        controller.enqueue(TypedArrayPrototypeSubarray(chunk, from, from + DECODED_PIECE));
      }
    },
  });
}

function decoded(stream, formats) {
  for (let i = 0; i < formats.length; i++) {
    if (i > 0) {
      stream = stream.pipeThrough(cutter());
    }
    stream = stream.pipeThrough(new compression.DecompressionStream(formats[i]));
  }
  return stream;
}

// The fields of an answer whose body was decoded. They describe the body that the function reads,
// so that the function can pass on both together or either alone. An entity tag of the encoded body
// becomes a weak one (RFC 9110, section 8.8.1).
function decodedFields(headerList) {
  const list = without(headerList, ENCODED_HEADERS);
  for (let i = 0; i < list.length; i++) {
    const [name, value] = list[i];
    if (StringPrototypeToLowerCase(name) === "etag" && StringPrototypeStartsWith(value, '"')) {
      list[i] = [name, `W/${value}`];
    }
  }
  return list;
}

function makeResponse(answer, inner, signal) {
  const made = response.newInnerResponse(answer.status, "");
  made.headerList = answer.headerList;
  made.type = "basic";
  made.urlList = inner.urlListProcessed;
  if (answer.body !== 0 && !response.nullBodyStatus(answer.status)) {
    const formats = formatsOf(answer);
    if (formats.length === 0) {
      made.body = new ArrivingBody(answer.body);
    } else {
      made.body = new fetchBody.InnerBody(decoded(receive(answer.body), formats));
      made.headerList = decodedFields(answer.headerList);
    }
    signal?.[abortSignal.add](() => {
      op_casemate_cancel(answer.body);
      made.body.error(signal.reason);
    });
  } else if (answer.body !== 0) {
    op_casemate_cancel(answer.body);
  }
  return response.fromInnerResponse(made, "immutable");
}

async function run(inner, binding, signal) {
  if (binding === null && isLocal(inner)) {
    return local(inner, signal);
  }
  let through = binding === null ? -1 : binding.index;
  while (true) {
    signal?.throwIfAborted();
    // Only for a clear error: the vault decides what may be reached.
    const from = inner.currentUrl();
    if (!StringPrototypeStartsWith(from, "https://") && !StringPrototypeStartsWith(from, "http://")) {
      throw new TypeError(`fetch cannot reach ${new url.URL(from).protocol} URLs`);
    }
    const answer = await hop(inner, through, signal);
    if (answer.code !== undefined) {
      // Made here, so that its stack leads to the function's code.
      const error = failure(answer.code, answer.message);
      WeakMapPrototypeSet(failures, error, answer.uncaught);
      throw error;
    }
    const location = response.redirectStatus(answer.status) ? header(answer.headerList, "location") : null;
    if (location === null || inner.redirectMode === "manual") {
      return makeResponse(answer, inner, signal);
    }
    if (answer.body !== 0) {
      op_casemate_cancel(answer.body);
    }
    if (inner.redirectMode === "error") {
      throw new TypeError(`${from} redirects, and redirect is "error"`);
    }
    if (inner.redirectCount >= MAX_HOPS) {
      throw new TypeError(`more than ${MAX_HOPS} redirects`);
    }
    const to = new url.URL(location, from);
    redirect(inner, answer.status, new url.URL(from), to);
    if (through !== -1 && to.origin !== binding.origin) {
      through = -1;
    }
  }
}

function begin(binding, input, init) {
  if (binding !== null && !ObjectPrototypeIsPrototypeOf(request.RequestPrototype, input)) {
    input = new url.URL(`${input}`, binding.base).href;
  }
  const made = new request.Request(input, init);
  const inner = request.toInnerRequest(made);
  const signal = internals.getCachedAbortSignal(made) || undefined;
  inner.urlListProcessed[0] = inner.url();
  return run(inner, binding, signal);
}

export async function fetch(input, init = undefined) {
  webidl.requiredArguments(arguments.length, 1, "Failed to execute 'fetch'");
  return await begin(null, input, init);
}

// An object whose only ability is to call through one credential slot.
export function capability(index, base) {
  const { origin } = new url.URL(base);
  const binding = { __proto__: null, index, base, origin };
  return primordials.ObjectFreeze({
    async fetch(input, init = undefined) {
      webidl.requiredArguments(arguments.length, 1, "Failed to execute 'fetch'");
      return await begin(binding, input, init);
    },
  });
}

