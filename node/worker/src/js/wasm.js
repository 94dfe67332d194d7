// `WebAssembly.compileStreaming` and `instantiateStreaming`: V8 passes the response, and gets its
// bytes from here.

import { core, primordials } from "ext:core/mod.js";
import { response as fetchResponse, streams, webidl } from "ext:casemate/web.js";

const { op_wasm_streaming_feed, op_wasm_streaming_set_url } = core.ops;
const { PromisePrototypeThen, StringPrototypeToLowerCase, TypeError } = primordials;

async function feed(stream, handle) {
  const reader = streams.acquireReadableStreamDefaultReader(stream);
  while (true) {
    const { done, value } = await reader.read();
    if (done) {
      return;
    }
    op_wasm_streaming_feed(handle, value);
  }
}

// https://webassembly.github.io/spec/web-api/#compile-a-potential-webassembly-response
export function stream(source, handle) {
  try {
    const given = webidl.converters["Response"](source, "Failed to execute 'WebAssembly.compileStreaming'", "Argument 1");
    const inner = fetchResponse.toInnerResponse(given);
    if (StringPrototypeToLowerCase(given.headers.get("content-type") ?? "") !== "application/wasm") {
      throw new TypeError("the response is not of type application/wasm");
    }
    if (!given.ok) {
      throw new TypeError(`the response has status ${inner.status}`);
    }
    op_wasm_streaming_set_url(handle, given.url);
    if (given.body === null) {
      core.close(handle);
      return;
    }
    PromisePrototypeThen(feed(given.body, handle), () => core.close(handle), (error) => core.abortWasmStreaming(handle, error));
  } catch (error) {
    core.abortWasmStreaming(handle, error);
  }
}
