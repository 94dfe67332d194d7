// From an arriving request to the handler and back.

import { core, primordials } from "ext:core/mod.js";
import { ArrivingBody, send } from "ext:casemate/body.js";
import { flatten, unflatten, within } from "ext:casemate/calls.js";
import { failureOf } from "ext:casemate/fetch.js";
import { console as inspection, request, response, webidl } from "ext:casemate/web.js";

const {
  op_casemate_fail,
  op_casemate_headers,
  op_casemate_on_cancel,
  op_casemate_respond_bytes,
  op_casemate_respond_empty,
  op_casemate_respond_stream,
  op_casemate_respond_text,
  op_casemate_url,
  op_casemate_wait_until,
} = core.ops;
const {
  MapPrototypeDelete,
  MapPrototypeGet,
  MapPrototypeSet,
  ObjectPrototypeIsPrototypeOf,
  PromisePrototypeThen,
  PromiseResolve,
  ReflectApply,
  SafeMap,
  String,
  TypeError,
} = primordials;

// The function: its default export, that object's `fetch`, and `env`.
let entry, handler, env;
// Requests under way -> callback for when the caller leaves.
const cancels = new SafeMap();

export function install(namespace, environment) {
  entry = namespace.default;
  handler = entry?.fetch;
  env = environment;
  if (typeof handler !== "function") {
    throw new TypeError("the entry module must export default an object with a fetch(request, env, ctx) method");
  }
}

// A request in the internal form of deno_fetch's Request; everything is read from the program on
// first use.
class IncomingRequest {
  #id;
  #headerList = null;
  #urlList = null;

  constructor(id, method, body) {
    this.#id = id;
    this.method = method;
    this.body = body === 0 ? null : new ArrivingBody(body);
    this.redirectMode = "follow";
    this.redirectCount = 0;
    this.urlListProcessed = [];
    this.clientRid = null;
    this.blobUrlEntry = null;
  }

  url() {
    return this.urlListProcessed[0] ??= op_casemate_url(this.#id);
  }

  currentUrl() {
    return this.url();
  }

  get urlList() {
    return this.#urlList ??= [() => this.url()];
  }

  get headerList() {
    return this.#headerList ??= unflatten(op_casemate_headers(this.#id));
  }

  onCancel(callback) {
    op_casemate_on_cancel(this.#id);
    MapPrototypeSet(cancels, this.#id, callback);
  }
}

class ExecutionContext {
  #id;

  constructor(id) {
    this.#id = id;
  }

  waitUntil(promise) {
    webidl.requiredArguments(arguments.length, 1, "Failed to execute 'waitUntil'");
    const id = this.#id;
    op_casemate_wait_until(id, true);
    PromisePrototypeThen(PromiseResolve(promise), () => op_casemate_wait_until(id, false), (error) => {
      core.reportUnhandledPromiseRejection(error);
      op_casemate_wait_until(id, false);
    });
  }

  passThroughOnException() {}
}

// Describes an error for the tenant. Getters and inspectors of the error are the function's code:
// they may throw.
export function describe(error) {
  try {
    return inspection.inspectArgs([error]);
  } catch {
    try {
      return String(error);
    } catch {
      return "an error that cannot be shown";
    }
  }
}

function fail(id, error) {
  op_casemate_fail(id, failureOf(error), describe(error));
}

function respond(id, value) {
  if (!ObjectPrototypeIsPrototypeOf(response.ResponsePrototype, value)) {
    throw new TypeError("the handler must return a Response");
  }
  const inner = response.toInnerResponse(value);
  if (inner === undefined || inner.type === "error" || inner.status < 200) {
    throw new TypeError("the handler returned a response that cannot be sent");
  }
  const headers = flatten(response.wireHeaderList(inner));
  if (inner.body === null) {
    op_casemate_respond_empty(id, inner.status, headers);
    return;
  }
  if (inner.body.unusable()) {
    throw new TypeError("the body of the returned response was already used");
  }
  const { streamOrStatic } = inner.body;
  const whole = streamOrStatic.body;
  if (typeof whole === "string") {
    streamOrStatic.consumed = true;
    op_casemate_respond_text(id, inner.status, headers, whole);
  } else if (whole !== undefined) {
    streamOrStatic.consumed = true;
    op_casemate_respond_bytes(id, inner.status, headers, whole);
  } else {
    const { stream } = inner.body;
    const handle = op_casemate_respond_stream(id, inner.status, headers);
    PromisePrototypeThen(send(stream, handle), undefined, (error) => fail(id, error));
  }
}

function settle(id, value) {
  try {
    respond(id, value);
  } catch (error) {
    fail(id, error);
  }
}

// Called by the program: a request. `body` is 0 when there is none.
export function dispatch(id, method, body) {
  within(id, () => {
    const incoming = request.fromInnerRequest(new IncomingRequest(id, method, body), "immutable");
    let result;
    try {
      result = ReflectApply(handler, entry, [incoming, env, new ExecutionContext(id)]);
    } catch (error) {
      fail(id, error);
      return;
    }
    if (ObjectPrototypeIsPrototypeOf(response.ResponsePrototype, result)) {
      settle(id, result);
    } else {
      PromisePrototypeThen(PromiseResolve(result), (value) => settle(id, value), (error) => fail(id, error));
    }
  });
}

// Called by the program: the caller has left.
export function cancelled(id) {
  const cancel = MapPrototypeGet(cancels, id);
  MapPrototypeDelete(cancels, id);
  cancel?.();
}

// Called by the program: this request can no longer be cancelled.
export function settled(id) {
  MapPrototypeDelete(cancels, id);
}
