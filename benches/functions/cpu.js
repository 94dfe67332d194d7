// About five milliseconds of typical processor work: the function parses, groups, sorts and formats
// text.
const WORDS = "edge node vault lease slot grant epoch pool tenant release bundle manifest".split(" ");
function report(seed) {
  let state = seed;
  const next = () => (state = (state * 1103515245 + 12345) % 2147483648);
  const rows = Array.from({ length: 2000 }, (_, id) => ({
    id, name: `${WORDS[next() % WORDS.length]}-${next() % 500}`, price: next() % 10000, tags: [WORDS[next() % 12]],
  }));
  const read = JSON.parse(JSON.stringify(rows));
  const groups = new Map();
  for (const row of read) {
    const key = row.name.replace(/-\d+$/, "");
    const group = groups.get(key) ?? { count: 0, total: 0, names: new Set() };
    group.count += 1;
    group.total += row.price;
    group.names.add(row.name);
    groups.set(key, group);
  }
  return [...groups].sort(([, a], [, b]) => b.total - a.total)
    .map(([key, { count, total, names }]) => ({ key, count, total, names: [...names].sort().length }));
}
let seed = 1;
export default {
  fetch() {
    seed += 1;
    return Response.json(report(seed));
  },
};
