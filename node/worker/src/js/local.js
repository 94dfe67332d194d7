// `fetch` of data: and blob: URLs, which stay within the isolate: no call is made or counted.

import { primordials } from "ext:core/mod.js";
import { fetchBody, infra, mimesniff, response } from "ext:casemate/web.js";

const {
  NumberParseInt,
  RegExpPrototypeTest,
  SafeRegExp,
  String,
  StringFromCharCode,
  StringPrototypeCharCodeAt,
  StringPrototypeIndexOf,
  StringPrototypeReplace,
  StringPrototypeSlice,
  StringPrototypeStartsWith,
  StringPrototypeTrim,
  TypeError,
  TypedArrayPrototypeSlice,
  Uint8Array,
} = primordials;

const DATA = "data:";
const BLOB = "blob:";
const PERCENT = 37;
const HEX_PAIR = new SafeRegExp(/^[0-9A-Fa-f]{2}$/);
// The end of a media type with base64 data.
const BASE64 = new SafeRegExp(/; *base64$/i);
const DEFAULT_TYPE = "text/plain;charset=US-ASCII";

// Applies to the first URL of a call alone: no redirect leads to such a URL (Fetch standard,
// HTTP-redirect fetch).
export function isLocal(inner) {
  const href = inner.url();
  return StringPrototypeStartsWith(href, DATA) || StringPrototypeStartsWith(href, BLOB);
}

// Decodes the text of a URL, which is ASCII.
function percentDecode(text) {
  const bytes = new Uint8Array(text.length);
  let length = 0;
  for (let i = 0; i < text.length; i++) {
    let byte = StringPrototypeCharCodeAt(text, i);
    if (byte === PERCENT) {
      const pair = StringPrototypeSlice(text, i + 1, i + 3);
      if (RegExpPrototypeTest(HEX_PAIR, pair)) {
        byte = NumberParseInt(pair, 16);
        i += 2;
      }
    }
    bytes[length++] = byte;
  }
  // A copy, because `arrayBuffer()` returns the whole buffer.
  return TypedArrayPrototypeSlice(bytes, 0, length);
}

function latin1(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i++) {
    text += StringFromCharCode(bytes[i]);
  }
  return text;
}

// https://fetch.spec.whatwg.org/#data-url-processor
function readData(href) {
  const hash = StringPrototypeIndexOf(href, "#");
  const whole = StringPrototypeSlice(href, DATA.length, hash === -1 ? href.length : hash);
  const comma = StringPrototypeIndexOf(whole, ",");
  if (comma === -1) {
    throw new TypeError("fetch cannot read this data: URL: expected a comma before the data");
  }
  let type = StringPrototypeTrim(StringPrototypeSlice(whole, 0, comma));
  const data = StringPrototypeSlice(whole, comma + 1);
  let bytes;
  if (RegExpPrototypeTest(BASE64, type)) {
    type = StringPrototypeReplace(type, BASE64, "");
    try {
      const isPlain = StringPrototypeIndexOf(data, "%") === -1;
      bytes = infra.forgivingBase64Decode(isPlain ? data : latin1(percentDecode(data)));
    } catch {
      throw new TypeError("fetch cannot read this data: URL: its data are not base64");
    }
  } else {
    bytes = percentDecode(data);
  }
  if (StringPrototypeStartsWith(type, ";")) {
    type = `text/plain${type}`;
  }
  const parsed = mimesniff.parseMimeType(type);
  return { bytes, type: parsed === null ? DEFAULT_TYPE : mimesniff.serializeMimeType(parsed) };
}

function made(inner, headerList, body) {
  const answer = response.newInnerResponse(200, "OK");
  answer.headerList = headerList;
  answer.type = "basic";
  answer.urlList = inner.urlListProcessed;
  answer.body = body;
  return response.fromInnerResponse(answer, "immutable");
}

export function local(inner, signal) {
  signal?.throwIfAborted();
  const href = inner.url();
  if (StringPrototypeStartsWith(href, DATA)) {
    const { bytes, type } = readData(href);
    const body = inner.method === "HEAD" ? null : new fetchBody.InnerBody({ body: bytes, consumed: false });
    return made(inner, [["content-type", type]], body);
  }
  const blob = inner.blobUrlEntry;
  if (blob === null) {
    throw new TypeError("fetch cannot read this blob: URL: it was revoked, or belongs to another function");
  }
  if (inner.method !== "GET") {
    throw new TypeError(`fetch reads blob: URLs with GET, not with ${inner.method}`);
  }
  const fields = [["content-length", String(blob.size)], ["content-type", blob.type]];
  return made(inner, fields, new fetchBody.InnerBody(blob.stream()));
}
