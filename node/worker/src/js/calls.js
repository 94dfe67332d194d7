// Which request the running code belongs to, and header lists as the program takes them.
//
// V8 carries the context across `await`; timers and events from the program restore it. Code of the function can neither
// see nor change it, and nothing else sets one.

import { core, primordials } from "ext:core/mod.js";

const { ArrayPrototypeJoin, ArrayPrototypePush, StringPrototypeSplit } = primordials;
const { getAsyncContext, setAsyncContext } = core;

// Number of the running request, 0 when there is none.
export function currentRequest() {
  return getAsyncContext()?.request ?? 0;
}

// Calls `task` as part of `request`.
export function within(request, task) {
  const before = getAsyncContext();
  // Its own property, whatever the function does to prototypes; without one the object would be a slow dictionary.
  setAsyncContext({ request });
  try {
    return task();
  } finally {
    setAsyncContext(before);
  }
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
