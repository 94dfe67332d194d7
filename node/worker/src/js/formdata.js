// `formData()` of requests and responses for multipart/form-data (RFC 7578, and the Fetch standard's parsing of it).
//
// deno_fetch's own parser loses names with quotes and accepts a body that breaks off as complete.
// Its serializer escapes characters that are unescaped here.

import { core, primordials } from "ext:core/mod.js";
import { encoding, file, formData, headers, mimesniff, request, response } from "ext:casemate/web.js";

const {
  MapPrototypeGet,
  ObjectDefineProperty,
  ObjectGetOwnPropertyDescriptor,
  ReflectApply,
  SafeRegExp,
  StringPrototypeIndexOf,
  StringPrototypeReplace,
  StringPrototypeSlice,
  StringPrototypeToLowerCase,
  StringPrototypeTrim,
  TypeError,
  TypedArrayPrototypeIndexOf,
  TypedArrayPrototypeSubarray,
} = primordials;

const CR = 13;
const LF = 10;
const DASH = 45;
const SPACE = 32;
const TAB = 9;

// Most bytes of a part's fields, and most fields.
const MAX_FIELDS_BYTES = 16 * 1024;
const MAX_FIELDS = 128;

const ESCAPED = new SafeRegExp(/%(?:0A|0D|22)/gi);
const UNESCAPED = { __proto__: null, "%0a": "\n", "%0d": "\r", "%22": '"' };

const utf8 = new encoding.TextDecoder("utf-8", { ignoreBOM: true });
// Taken before the function's code may change them.
const { decode } = encoding.TextDecoder.prototype;
const { append } = formData.FormData.prototype;

function text(bytes) {
  return ReflectApply(decode, utf8, [bytes]);
}

function wrong(what) {
  return new TypeError(`the body is not the form that its content type says: ${what}`);
}

function isBlank(byte) {
  return byte === SPACE || byte === TAB;
}

// The end of the line that begins at `from`, or -1.
function endOfLine(bytes, from) {
  let at = TypedArrayPrototypeIndexOf(bytes, CR, from);
  while (at !== -1 && bytes[at + 1] !== LF) {
    at = TypedArrayPrototypeIndexOf(bytes, CR, at + 1);
  }
  return at;
}

// The delimiter line at `at`: the position after it, and whether it is the last one. Blanks may
// follow it (RFC 2046, section 5.1.1).
function delimiterAt(bytes, at, dashed) {
  for (let i = 0; i < dashed.length; i++) {
    if (bytes[at + i] !== dashed[i]) {
      return null;
    }
  }
  let next = at + dashed.length;
  const isLast = bytes[next] === DASH && bytes[next + 1] === DASH;
  if (isLast) {
    next += 2;
  }
  while (isBlank(bytes[next])) {
    next++;
  }
  const endsHere = isLast && next === bytes.length;
  return endsHere || (bytes[next] === CR && bytes[next + 1] === LF) ? { next: endsHere ? next : next + 2, isLast } : null;
}

// The position of the first delimiter, after the preamble, which is ignored.
function firstDelimiter(bytes, dashed) {
  let at = 0;
  while (at !== -1) {
    const found = delimiterAt(bytes, at, dashed);
    if (found !== null) {
      return found;
    }
    const end = endOfLine(bytes, at);
    at = end === -1 ? -1 : end + 2;
  }
  throw wrong("its boundary does not occur");
}

function unescape(value) {
  return StringPrototypeReplace(value, ESCAPED, (found) => UNESCAPED[StringPrototypeToLowerCase(found)]);
}

// The parameters of Content-Disposition that a form uses. A quoted value ends at the first quote: a
// backslash is an ordinary character. Other parameters, such as `filename*`, are skipped.
function dispositionOf(value) {
  const found = { __proto__: null, name: undefined, filename: undefined };
  let end = StringPrototypeIndexOf(value, ";");
  if (StringPrototypeToLowerCase(StringPrototypeTrim(end === -1 ? value : StringPrototypeSlice(value, 0, end))) !== "form-data") {
    throw wrong("a part is not form-data");
  }
  while (end !== -1 && end < value.length) {
    const from = end + 1;
    const equals = StringPrototypeIndexOf(value, "=", from);
    if (equals === -1) {
      break;
    }
    const name = StringPrototypeToLowerCase(StringPrototypeTrim(StringPrototypeSlice(value, from, equals)));
    let begin = equals + 1;
    while (value[begin] === " " || value[begin] === "\t") {
      begin++;
    }
    let given;
    if (value[begin] === '"') {
      const quote = StringPrototypeIndexOf(value, '"', begin + 1);
      if (quote === -1) {
        throw wrong(`the value of ${name} has no closing quote`);
      }
      given = StringPrototypeSlice(value, begin + 1, quote);
      end = StringPrototypeIndexOf(value, ";", quote);
    } else {
      end = StringPrototypeIndexOf(value, ";", begin);
      given = StringPrototypeTrim(StringPrototypeSlice(value, begin, end === -1 ? value.length : end));
    }
    if ((name === "name" || name === "filename") && found[name] === undefined) {
      found[name] = unescape(given);
    }
  }
  return found;
}

// The fields of a part that begins at `at`, and the start of its content.
function fieldsAt(bytes, at) {
  const begin = at;
  const fields = { disposition: undefined, type: undefined, content: 0 };
  for (let count = 0; ; count++) {
    const end = endOfLine(bytes, at);
    if (end === -1) {
      throw wrong("it ends in the fields of a part");
    }
    if (end === at) {
      fields.content = at + 2;
      return fields;
    }
    if (count === MAX_FIELDS || end - begin > MAX_FIELDS_BYTES) {
      throw wrong("the fields of a part are too many or too long");
    }
    const line = text(TypedArrayPrototypeSubarray(bytes, at, end));
    const colon = StringPrototypeIndexOf(line, ":");
    const name = StringPrototypeToLowerCase(StringPrototypeTrim(StringPrototypeSlice(line, 0, colon === -1 ? 0 : colon)));
    const value = StringPrototypeTrim(StringPrototypeSlice(line, colon + 1));
    if (name === "content-disposition") {
      fields.disposition ??= dispositionOf(value);
    } else if (name === "content-type") {
      fields.type ??= value;
    }
    at = end + 2;
  }
}

// The end of the content that begins at `from`, with the delimiter behind it.
function contentFrom(bytes, from, dashed) {
  // The content of an empty part has no line of its own.
  let end = from - 2;
  while (end !== -1) {
    const delimiter = delimiterAt(bytes, end + 2, dashed);
    if (delimiter !== null) {
      return { end: end < from ? from : end, delimiter };
    }
    end = endOfLine(bytes, end + 2);
  }
  throw wrong("it ends before its last boundary");
}

function parse(bytes, boundary) {
  const dashed = core.encode(`--${boundary}`);
  const form = new formData.FormData();
  let delimiter = firstDelimiter(bytes, dashed);
  while (!delimiter.isLast) {
    const { disposition, type, content } = fieldsAt(bytes, delimiter.next);
    if (disposition?.name === undefined) {
      throw wrong("a part has no name");
    }
    const found = contentFrom(bytes, content, dashed);
    const value = TypedArrayPrototypeSubarray(bytes, content, found.end);
    if (disposition.filename === undefined) {
      ReflectApply(append, form, [disposition.name, text(value)]);
    } else {
      const blob = new file.Blob([value], { type: type ?? "application/octet-stream" });
      ReflectApply(append, form, [disposition.name, blob, disposition.filename]);
    }
    delimiter = found.delimiter;
  }
  return form;
}

// Replaces `formData` of a class for multipart bodies; all others use the original.
function replace(prototype) {
  const { value: original } = ObjectGetOwnPropertyDescriptor(prototype, "formData");
  const { value: bytes } = ObjectGetOwnPropertyDescriptor(prototype, "bytes");
  const { get: headersOf } = ObjectGetOwnPropertyDescriptor(prototype, "headers");
  const { formData: method } = {
    async formData() {
      const list = headers.headerListFromHeaders(ReflectApply(headersOf, this, []));
      const type = mimesniff.extractMimeType(headers.getDecodeSplitHeader(list, "Content-Type"));
      if (type === null || mimesniff.essence(type) !== "multipart/form-data") {
        return await ReflectApply(original, this, []);
      }
      const all = await ReflectApply(bytes, this, []);
      const boundary = MapPrototypeGet(type.parameters, "boundary");
      if (boundary === undefined || boundary === "") {
        throw new TypeError("multipart/form-data without a boundary");
      }
      return parse(all, boundary);
    },
  };
  ObjectDefineProperty(prototype, "formData", { __proto__: null, value: method });
}

replace(request.RequestPrototype);
replace(response.ResponsePrototype);
