// The request to which the running code belongs, and header lists in the program's format.
//
// V8 carries the context across `await`; timers and events from the program restore it. The
// function's code can neither see nor change it, and no other code sets it.

import { core, primordials } from "ext:core/mod.js";

const { op_casemate_put_off } = core.ops;
const {
  ArrayPrototypeJoin,
  ArrayPrototypePush,
  MapPrototypeDelete,
  MapPrototypeGet,
  MapPrototypeSet,
  ObjectDefineProperty,
  SafeMap,
  SafeWeakSet,
  StringPrototypeSplit,
  TypeError,
  WeakSetPrototypeAdd,
  WeakSetPrototypeHas,
} = primordials;
const { getAsyncContext, setAsyncContext } = core;

// Number of the running request, 0 when there is none. The context is this number and nothing more,
// so that the watch can read it in the middle of code that it stops.
export function currentRequest() {
  return getAsyncContext() ?? 0;
}

// Calls `task` as part of `request`.
export function within(request, task) {
  const before = getAsyncContext();
  setAsyncContext(request);
  try {
    return task();
  } finally {
    setAsyncContext(before);
  }
}

// Ticket -> deferred task.
const putOff = new SafeMap();
let lastTicket = 0;

// Calls `task` in a turn of `request`, so that the function's code that it wakes is charged to that
// request. The platform's own asynchrony (results of cryptography, unhandled rejections) runs
// between turns, when CPU time is charged to no request.
export function inTurn(request, task) {
  lastTicket = (lastTicket + 1) >>> 0;
  MapPrototypeSet(putOff, lastTicket, task);
  if (!op_casemate_put_off(request, lastTicket)) {
    resume(lastTicket);
  }
}

// Called by the program: the turn for this ticket has begun.
export function resume(ticket) {
  const task = MapPrototypeGet(putOff, ticket);
  MapPrototypeDelete(putOff, ticket);
  task?.();
}

// [[name, value], ...] as `name NUL value NUL ...`: neither can hold a NUL.
export function flatten(headerList) {
  const parts = [];
  for (let i = 0; i < headerList.length; i++) {
    ArrayPrototypePush(parts, headerList[i][0], headerList[i][1]);
  }
  return ArrayPrototypeJoin(parts, "\0");
}

export function unflatten(text) {
  const list = [];
  if (text === "") {
    return list;
  }
  const parts = StringPrototypeSplit(text, "\0");
  for (let i = 0; i + 1 < parts.length; i += 2) {
    ArrayPrototypePush(list, [parts[i], parts[i + 1]]);
  }
  return list;
}

// Makes the error of a failed call or answer, as the function sees it.
export function failure(code, message) {
  const error = new TypeError(message);
  ObjectDefineProperty(error, "code", { __proto__: null, value: code, enumerable: true, configurable: true, writable: true });
  return error;
}

// Errors of calls and bodies whose request has ended. The log of that request has a line about
// them.
const ended = new SafeWeakSet();

// What belongs to a request ends with it. Promises of this request or a later one that wait for it
// get this error.
export function requestEnded(what) {
  const remedy = "ctx.waitUntil keeps a request until a promise has settled";
  const error = failure("request_ended", `the request that began ${what} has ended; ${remedy}`);
  WeakSetPrototypeAdd(ended, error);
  return error;
}

export function saysRequestEnded(error) {
  return typeof error === "object" && error !== null && WeakSetPrototypeHas(ended, error);
}
