// The global object: WinterTC's minimum common API, without the internals below it.

import { core, primordials } from "ext:core/mod.js";
import { currentRequest, inTurn, saysRequestEnded } from "ext:casemate/calls.js";
import { fetch } from "ext:casemate/fetch.js";
import { describe } from "ext:casemate/incoming.js";
import * as timers from "ext:casemate/timers.js";
import * as web from "ext:casemate/web.js";

const { op_casemate_log } = core.ops;
const { ObjectDefineProperty, ObjectSetPrototypeOf, StringPrototypeEndsWith, StringPrototypeSlice } = primordials;
const { event } = web;

const ERROR = 3;

function print(message, level) {
  const text = StringPrototypeEndsWith(message, "\n") ? StringPrototypeSlice(message, 0, -1) : message;
  op_casemate_log(currentRequest(), level, text);
}

const INTERFACES = {
  AbortController: web.abortSignal.AbortController,
  AbortSignal: web.abortSignal.AbortSignal,
  Blob: web.file.Blob,
  ByteLengthQueuingStrategy: web.streams.ByteLengthQueuingStrategy,
  CompressionStream: web.compression.CompressionStream,
  CountQueuingStrategy: web.streams.CountQueuingStrategy,
  Crypto: web.crypto.Crypto,
  CryptoKey: web.crypto.CryptoKey,
  CustomEvent: event.CustomEvent,
  DecompressionStream: web.compression.DecompressionStream,
  DOMException: web.domException.DOMException,
  ErrorEvent: event.ErrorEvent,
  Event: event.Event,
  EventTarget: event.EventTarget,
  File: web.file.File,
  FormData: web.formData.FormData,
  Headers: web.headers.Headers,
  MessageChannel: web.messagePort.MessageChannel,
  MessageEvent: event.MessageEvent,
  MessagePort: web.messagePort.MessagePort,
  Performance: web.performance.Performance,
  PerformanceEntry: web.performance.PerformanceEntry,
  PerformanceMark: web.performance.PerformanceMark,
  PerformanceMeasure: web.performance.PerformanceMeasure,
  PromiseRejectionEvent: event.PromiseRejectionEvent,
  ReadableByteStreamController: web.streams.ReadableByteStreamController,
  ReadableStream: web.streams.ReadableStream,
  ReadableStreamBYOBReader: web.streams.ReadableStreamBYOBReader,
  ReadableStreamBYOBRequest: web.streams.ReadableStreamBYOBRequest,
  ReadableStreamDefaultController: web.streams.ReadableStreamDefaultController,
  ReadableStreamDefaultReader: web.streams.ReadableStreamDefaultReader,
  Request: web.request.Request,
  Response: web.response.Response,
  SubtleCrypto: web.crypto.SubtleCrypto,
  TextDecoder: web.encoding.TextDecoder,
  TextDecoderStream: web.encoding.TextDecoderStream,
  TextEncoder: web.encoding.TextEncoder,
  TextEncoderStream: web.encoding.TextEncoderStream,
  TransformStream: web.streams.TransformStream,
  TransformStreamDefaultController: web.streams.TransformStreamDefaultController,
  URL: web.url.URL,
  URLPattern: web.urlPattern.URLPattern,
  URLSearchParams: web.url.URLSearchParams,
  WorkerGlobalScope: web.globalInterfaces.WorkerGlobalScope,
  WritableStream: web.streams.WritableStream,
  WritableStreamDefaultController: web.streams.WritableStreamDefaultController,
  WritableStreamDefaultWriter: web.streams.WritableStreamDefaultWriter,
};

const OPERATIONS = {
  atob: web.base64.atob,
  btoa: web.base64.btoa,
  clearInterval: timers.clearInterval,
  clearTimeout: timers.clearTimeout,
  fetch,
  reportError: event.reportError,
  setInterval: timers.setInterval,
  setTimeout: timers.setTimeout,
  structuredClone: web.messagePort.structuredClone,
};

class Navigator {
  get userAgent() {
    return "Casemate";
  }
}

// Reports an unhandled rejection to the function's listeners, then to the log; the request
// continues. Listeners, and getters of the error, are the function's code: they run in a turn of
// the request to which the rejection belongs.
function unhandledRejection(promise, reason) {
  if (saysRequestEnded(reason)) {
    return true;
  }
  const request = currentRequest();
  inTurn(request, () => {
    const init = { promise, reason, cancelable: true };
    const rejection = new event.PromiseRejectionEvent("unhandledrejection", init);
    event.setIsTrusted(rejection, true);
    globalThis.dispatchEvent(rejection);
    if (!rejection.defaultPrevented) {
      op_casemate_log(request, ERROR, `Uncaught (in promise) ${describe(reason)}`);
    }
  });
  return true;
}

function handledRejection(promise, reason) {
  inTurn(currentRequest(), () => {
    const rejection = new event.PromiseRejectionEvent("rejectionhandled", { promise, reason });
    event.setIsTrusted(rejection, true);
    globalThis.dispatchEvent(rejection);
  });
}

export function defineGlobals() {
  for (const name in INTERFACES) {
    ObjectDefineProperty(globalThis, name, core.propNonEnumerable(INTERFACES[name]));
  }
  for (const name in OPERATIONS) {
    ObjectDefineProperty(globalThis, name, core.propWritable(OPERATIONS[name]));
  }
  ObjectDefineProperty(globalThis, "console", core.propNonEnumerable(new web.console.Console(print)));
  ObjectDefineProperty(globalThis, "crypto", core.propGetterOnly(() => web.crypto.crypto));
  ObjectDefineProperty(globalThis, "navigator", core.propGetterOnly(() => navigator));
  ObjectDefineProperty(globalThis, "performance", core.propWritable(web.performance.performance));
  ObjectDefineProperty(globalThis, "self", core.propGetterOnly(() => globalThis));
  ObjectSetPrototypeOf(globalThis, web.globalInterfaces.WorkerGlobalScope.prototype);
  ObjectDefineProperty(globalThis, web.webidl.brand, core.propNonEnumerable(web.webidl.brand));
  event.setEventTargetData(globalThis);
  event.saveGlobalThisReference(globalThis);
  event.defineEventHandler(globalThis, "error");
  event.defineEventHandler(globalThis, "rejectionhandled");
  event.defineEventHandler(globalThis, "unhandledrejection");
  web.console.setNoColorFns(() => true, () => true);
  core.setReportExceptionCallback(event.reportException);
  core.setUnhandledPromiseRejectionHandler(unhandledRejection);
  core.setHandledPromiseRejectionHandler(handledRejection);
}

const navigator = new Navigator();

// Removes shared memory, and every clock except the one that stands still.
export function removeGlobals() {
  for (const name of ["Deno", "__bootstrap", "__casemate", "SharedArrayBuffer", "Atomics", "Temporal"]) {
    delete globalThis[name];
  }
}
