// Turns the failure of a platform operation into an error, whatever class the operation names.
//
// An operation names the class of its error by a string, and deno_core looks up a builder by that
// name. Without a builder it would throw `undefined`. Any dependency may add a name, so the error
// for a name without a builder is built here.

import { core, primordials } from "ext:core/mod.js";
import { domException } from "ext:casemate/web.js";

const { Error, ObjectDefineProperty, ObjectFreeze, StringPrototypeSlice, StringPrototypeStartsWith } = primordials;

// The prefix that operations use for a name of
// https://webidl.spec.whatwg.org/#idl-DOMException-error-names.
const DOM_EXCEPTION = "DOMException";

function build(className, message) {
  if (StringPrototypeStartsWith(className, DOM_EXCEPTION)) {
    const name = StringPrototypeSlice(className, DOM_EXCEPTION.length);
    return new domException.DOMException(message, name);
  }
  const error = new Error(message);
  ObjectDefineProperty(error, "name", {
    __proto__: null,
    value: className,
    enumerable: false,
    configurable: true,
    writable: true,
  });
  return error;
}

const { buildCustomError } = core;

// The program takes this function when it starts. `core` is frozen; the program looks at
// `Deno.core`.
globalThis.Deno.core = ObjectFreeze({
  __proto__: core,
  buildCustomError: (className, message, properties) =>
    buildCustomError(className, message, properties) ?? build(className, message),
});
