// Functions that the program calls. It takes them when the worker starts; after that the function's
// code cannot reach anything here.

import { core, primordials } from "ext:core/mod.js";
import { arrived, dropped, taken } from "ext:casemate/body.js";
import { resume, within } from "ext:casemate/calls.js";
import { abandoned, answered, capability, refused } from "ext:casemate/fetch.js";
import { defineGlobals, removeGlobals } from "ext:casemate/globals.js";
import { cancelled, describe, dispatch, install, settled } from "ext:casemate/incoming.js";
import "ext:casemate/errors.js";
import "ext:casemate/formdata.js";
import "ext:casemate/subtle.js";
import { fire, forget } from "ext:casemate/timers.js";
import { stream } from "ext:casemate/wasm.js";
import { performance } from "ext:casemate/web.js";

const { Date, ObjectFreeze, ReflectApply } = primordials;

defineGlobals();

// Runs after the snapshot: uses what is set up on first use, while the program may still open
// files.
async function start() {
  core.setWasmStreamingCallback(stream);
  performance.setTimeOrigin();
  new Date(0).toString();
  new Date(0).toLocaleString();
  globalThis.performance.now();
  describe(new primordials.Error());
  core.ops.op_casemate_describe_with(describe);
  const { crypto } = globalThis;
  crypto.randomUUID();
  crypto.getRandomValues(new primordials.Uint8Array(1));
  // The pool's thread sets up its own random number generator.
  const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
  const { privateKey } = await crypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
  await crypto.subtle.sign(algorithm, privateKey, new primordials.Uint8Array(1));
  await crypto.subtle.generateKey({ name: "AES-GCM", length: 256 }, true, ["encrypt"]);
  rehearse();
  removeGlobals();
}

// Dispatches requests that no caller sent, so that the first real one finds compiled code: the
// program ignores calls for request 0.
function rehearse() {
  const { Request, Response, URL } = globalThis;
  const rehearsal = {
    fetch(request, env, context) {
      context.waitUntil(request.url + request.method + request.headers.get("accept"));
      new Request("https://rehearsal.invalid/", { method: "POST", body: "{}" });
      const { pathname, searchParams } = new URL("https://rehearsal.invalid/path?name=value");
      return searchParams.get("name") ? Response.json({ pathname }) : new Response(pathname, { headers: { a: "b" } });
    },
  };
  install({ default: rehearsal }, {});
  for (let i = 0; i < 3; i++) {
    dispatch(0, "GET", 0);
  }
}

// The function's modules are evaluated: `bindings` are [name, origin] pairs.
function load(namespace, vars, bindings) {
  const env = { __proto__: primordials.ObjectPrototype };
  for (let i = 0; i < vars.length; i++) {
    define(env, vars[i][0], vars[i][1]);
  }
  for (let i = 0; i < bindings.length; i++) {
    define(env, bindings[i][0], capability(i, bindings[i][1]));
  }
  install(namespace, ObjectFreeze(env));
}

function define(object, name, value) {
  primordials.ObjectDefineProperty(object, name, {
    __proto__: null,
    value,
    enumerable: true,
    configurable: true,
    writable: true,
  });
}

// A request has ended: its pending operations will not complete, and their promises are rejected.
function over(request, timers, handles) {
  settled(request);
  for (let i = 0; i < timers.length; i++) {
    forget(timers[i]);
  }
  for (let i = 0; i < handles.length; i++) {
    abandoned(handles[i]);
    dropped(handles[i]);
  }
}

// Code of the function that runs here is part of a request: its calls, log lines and CPU time
// belong to that request.
const inRequest = (task) => (request, ...args) => within(request, () => ReflectApply(task, undefined, args));
const byRequest = (task) => (request) => within(request, () => task(request));

globalThis.__casemate = {
  start,
  load,
  dispatch,
  cancelled: byRequest(cancelled),
  over: (request, ...args) => within(request, () => over(request, ...args)),
  answered: inRequest(answered),
  refused: inRequest(refused),
  arrived: inRequest(arrived),
  taken: inRequest(taken),
  fire: inRequest(fire),
  resume: inRequest(resume),
};
