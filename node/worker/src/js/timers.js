// Timers of the function. The program measures the time and knows the owner of each timer: see
// `timers.rs`.

import { core, primordials } from "ext:core/mod.js";
import { currentRequest, failure } from "ext:casemate/calls.js";
import { abortSignal, domException, event, webidl } from "ext:casemate/web.js";

const { op_casemate_clear_timer, op_casemate_timer } = core.ops;
const {
  MapPrototypeDelete,
  MapPrototypeGet,
  MapPrototypeSet,
  ObjectDefineProperty,
  RangeError,
  ReflectApply,
  SafeMap,
  TypeError,
} = primordials;

// Values of `op_casemate_timer`.
const STARTED = 0;
const TOO_MANY = 1;
const REQUEST_ENDED = 2;

// The longest delay of a timer, in ms: 24 days, longer than any request.
const MAX_DELAY = 0x7fffffff;

// Number -> callback.
const timers = new SafeMap();
let last = 0;

function start(callback, delay, args, repeat) {
  if (typeof callback !== "function") {
    throw new TypeError("a timer needs a function");
  }
  last = (last + 1) & 0x7fffffff || 1;
  const converted = webidl.converters.long(delay ?? 0);
  const timer = { callback, args, request: currentRequest(), delay: converted > 1 ? converted : 1, repeat };
  const number = last;
  switch (arm(number, timer)) {
    case TOO_MANY:
      throw new RangeError("too many timers");
    case REQUEST_ENDED:
      throw failure("request_ended", "the request has ended: no timers can be set for it any more");
  }
  return number;
}

// Starts the timer; returns the value of `op_casemate_timer`.
function arm(number, timer) {
  const outcome = op_casemate_timer(timer.request, number, timer.delay, timer.repeat);
  if (outcome === STARTED) {
    MapPrototypeSet(timers, number, timer);
  } else {
    MapPrototypeDelete(timers, number);
  }
  return outcome;
}

function clear(number) {
  number = webidl.converters.long(number ?? 0);
  if (MapPrototypeDelete(timers, number)) {
    op_casemate_clear_timer(number);
  }
}

export function setTimeout(callback, delay = 0, ...args) {
  return start(callback, delay, args, false);
}

export function setInterval(callback, delay = 0, ...args) {
  return start(callback, delay, args, true);
}

export function clearTimeout(number = 0) {
  clear(number);
}

export function clearInterval(number = 0) {
  clear(number);
}

// deno_web's own `AbortSignal.timeout` uses a timer of the platform, which would belong to no
// request.
const { timeout } = {
  timeout(millis) {
    const prefix = "Failed to execute 'AbortSignal.timeout'";
    webidl.requiredArguments(arguments.length, 1, prefix);
    const range = { enforceRange: true };
    millis = webidl.converters["unsigned long long"](millis, prefix, "Argument 1", range);
    const controller = new abortSignal.AbortController();
    const abort = () => {
      const message = "The operation was aborted due to timeout";
      controller.abort(new domException.DOMException(message, "TimeoutError"));
    };
    start(abort, millis < MAX_DELAY ? millis : MAX_DELAY, [], false);
    return controller.signal;
  },
};
ObjectDefineProperty(abortSignal.AbortSignal, "timeout", { __proto__: null, value: timeout });

// Called by the program: a timer is due.
export function fire(number) {
  const timer = MapPrototypeGet(timers, number);
  if (timer === undefined) {
    return;
  }
  if (!timer.repeat) {
    MapPrototypeDelete(timers, number);
  }
  try {
    ReflectApply(timer.callback, globalThis, timer.args);
  } catch (error) {
    event.reportException(error);
  }
  if (timer.repeat && MapPrototypeGet(timers, number) === timer) {
    arm(number, timer);
  }
}

// Called by the program: the timer will not fire, because its request has ended.
export function forget(number) {
  MapPrototypeDelete(timers, number);
}
