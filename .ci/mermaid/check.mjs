// Parses every diagram with the real Mermaid and compares what Mermaid understood with what the code says.
//
//   node check.mjs ROOT JSON
//
// ROOT is the repository; JSON holds one file per slice, written by the example `diagram` of compute-states.
// Exit code 0: all agree. 1: something differs or does not parse.

import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { JSDOM } from 'jsdom';

// Mermaid cleans labels with a library that wants a browser.
const { window } = new JSDOM('');
globalThis.window = window;
globalThis.document = window.document;
const { default: mermaid } = await import('mermaid');

const [root, json] = process.argv.slice(2);
let failures = 0;

function fail(name, message) {
  failures += 1;
  console.error(`${name}: ${message}`);
}

// Two sets of strings; what is in one only is said.
function compare(name, what, parsed, coded) {
  const missing = [...coded].filter((it) => !parsed.has(it));
  const surplus = [...parsed].filter((it) => !coded.has(it));
  if (missing.length) fail(name, `${what} in the code only: ${missing.join(', ')}`);
  if (surplus.length) fail(name, `${what} in the diagram only: ${surplus.join(', ')}`);
}

const isEnd = (id) => id === 'root_start' || id === 'root_end';

async function check(name, text, slice) {
  let diagram;
  try {
    // Parsing is what a page does first; it also makes the kinds of diagrams known.
    await mermaid.parse(text);
    diagram = await mermaid.mermaidAPI.getDiagramFromText(text);
  } catch (error) {
    fail(name, `Mermaid cannot read it: ${error.message ?? error}`);
    return;
  }
  if (diagram.type !== 'stateDiagram') fail(name, `Mermaid takes it for a ${diagram.type}`);
  const states = new Set([...diagram.db.getStates().keys()].filter((id) => !isEnd(id)));
  const arrows = new Set(diagram.db.getRelations().map(({ id1, id2 }) => `${id1} -> ${id2}`));
  const coded = JSON.parse(readFileSync(join(json, `${slice}.json`), 'utf8'));
  const expected = new Set(coded.transitions.map(({ from, to }) => `${from} -> ${to}`));
  if (coded.initial !== null) expected.add(`root_start -> ${coded.initial}`);
  for (const state of coded.final) expected.add(`${state} -> root_end`);
  compare(name, 'states', states, new Set(coded.states));
  compare(name, 'arrows', arrows, expected);
  console.log(`${name}: ${states.size} states, ${arrows.size} arrows: ${[...states].sort().join(' ')}`);
}

const diagrams = join(root, 'diagrams');
const files = readdirSync(diagrams).filter((file) => file.endsWith('.mmd')).sort();
const slices = readdirSync(json).map((file) => file.replace(/\.json$/, '.mmd')).sort();
compare('diagrams', 'files', new Set(files), new Set(slices));
for (const file of files.filter((file) => slices.includes(file))) {
  await check(`diagrams/${file}`, readFileSync(join(diagrams, file), 'utf8'), file.replace(/\.mmd$/, ''));
}

const readme = join(root, 'README.md');
if (existsSync(readme)) {
  const marked = /<!-- diagram:begin -->\n```mermaid\n([\s\S]*?)```\n<!-- diagram:end -->/;
  const block = readFileSync(readme, 'utf8').match(marked);
  if (block === null) fail('README.md', 'no Mermaid block between the markers');
  else await check('README.md', block[1], 'overview');
}

process.exit(failures === 0 ? 0 : 1);
