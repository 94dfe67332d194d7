// `crypto.subtle` works on a thread of its own. Here each call names its request before it submits
// its work, and its result arrives in a turn of that request.

import { core, primordials } from "ext:core/mod.js";
import { currentRequest, inTurn } from "ext:casemate/calls.js";
import { crypto } from "ext:casemate/web.js";

const { op_casemate_pool_begin, op_casemate_pool_end } = core.ops;
const {
  ObjectDefineProperty,
  ObjectGetOwnPropertyDescriptor,
  Promise,
  PromisePrototypeThen,
  ReflectApply,
  ReflectOwnKeys,
} = primordials;

// `original` is an async function: it submits its work before it returns, and it does not throw.
function charged(name, original) {
  const method = {
    [name](...args) {
      const request = currentRequest();
      op_casemate_pool_begin(request);
      const result = ReflectApply(original, this, args);
      return new Promise((resolve, reject) => {
        const settle = (go) => (value) => {
          op_casemate_pool_end(request);
          inTurn(request, () => go(value));
        };
        PromisePrototypeThen(result, settle(resolve), settle(reject));
      });
    },
  }[name];
  return ObjectDefineProperty(method, "length", {
    __proto__: null,
    value: original.length,
    configurable: true,
  });
}

const { prototype } = crypto.SubtleCrypto;
for (const name of ReflectOwnKeys(prototype)) {
  const { value } = ObjectGetOwnPropertyDescriptor(prototype, name);
  if (typeof name === "string" && name !== "constructor" && typeof value === "function") {
    ObjectDefineProperty(prototype, name, { __proto__: null, value: charged(name, value) });
  }
}
