// Uses the page as a person would, with a mouse and without, and watches what it does.
//
//   node check.mjs PROGRAM DIRECTORY CHROMIUM SCREENSHOTS
//
// PROGRAM is started with --standalone on DIRECTORY, CHROMIUM opens its page. Exit code 0: the page does what it
// should. 1: it does not, and what is wrong is said.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const [program, directory, executablePath, screenshots] = process.argv.slice(2);
const TIMEOUT = 20_000;

// The program, and the address that it prints once it runs.
async function start() {
  const args = ['run', '--standalone', '-D', join(directory, 'data'), '--cache-dir', join(directory, 'cache'), '--external-http-port', '0', '--internal-http-port', '0'];
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let log = '';
  child.stderr.on('data', (piece) => { log += piece; });
  const ended = new Promise((done) => { child.on('exit', (code, signal) => done(signal ?? code)); });
  const address = new Promise((found, failed) => {
    let text = '';
    child.stdout.on('data', (piece) => {
      text += piece;
      const match = /http:\/\/127\.0\.0\.1:\d+/.exec(text);
      if (match) found(match[0]);
    });
    ended.then((code) => failed(new Error(`the program ended with ${code}:\n${log}`)));
  });
  return { child, ended, address, log: () => log };
}

const node = await start();
let browser;
try {
  const address = await node.address;
  browser = await chromium.launch({
    executablePath,
    args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: 'light', reducedMotion: 'reduce' });
  context.setDefaultTimeout(TIMEOUT);
  const page = await context.newPage();
  const complaints = [];
  page.on('console', (message) => {
    // A route that this build does not have is no fault of the page, which does without.
    const excused = message.location().url.endsWith('/metrics.json');
    if (['error', 'warning'].includes(message.type()) && !excused) complaints.push(message.text());
  });
  page.on('pageerror', (error) => complaints.push(String(error)));
  const elsewhere = [];
  page.on('request', (request) => {
    const url = request.url();
    if (!url.startsWith(`${address}/`) && !url.startsWith('data:')) elsewhere.push(url);
  });
  const shoot = (name) => page.screenshot({ path: join(screenshots, `${name}.png`), fullPage: true });
  const text = (selector) => page.locator(selector).innerText();

  // What is there.
  const answer = await page.goto(`${address}/`);
  assert.equal(answer.status(), 200);
  assert.match(answer.headers()['content-security-policy'], /default-src 'none'/);
  await page.locator('body[data-status=running]').waitFor();
  await page.locator('#link[data-link=live]').waitFor();
  const lit = page.locator('#graph .state.current');
  assert.equal(await lit.count(), 1);
  assert.equal(await lit.getAttribute('data-state'), 'running');
  assert.equal(await lit.getAttribute('aria-current'), 'true');
  assert.equal(await page.locator('#graph .state').count(), 11);
  assert.ok(await page.locator('#graph .arrow.possible').count() >= 3, 'ways out of the present state');
  assert.equal(await page.locator('#graph .arrow.taken').count(), 1, 'the last transition');
  const newest = page.locator('#history li').first();
  assert.match(await newest.innerText(), /running.*started Postgres/s);
  assert.match(await text('#latest'), /init → running/);
  await page.locator('#phases dt').first().waitFor();
  assert.match(await text('#activity'), /started/);
  assert.ok(await page.locator('#gate').isHidden(), 'no token is needed here');

  // States must not lie on each other, in any width.
  const apart = async () => {
    const boxes = await page.locator('#graph .state rect').evaluateAll((all) => all.map((one) => {
      const { left, right, top, bottom } = one.getBoundingClientRect();
      return { left, right, top, bottom };
    }));
    for (const [index, a] of boxes.entries()) {
      for (const b of boxes.slice(index + 1)) {
        assert.ok(a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top, 'two states overlap');
      }
    }
  };
  const fits = async () => {
    const [content, window] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    assert.ok(content <= window, `the page is ${content} wide in a window of ${window}`);
  };

  // In every light and width.
  const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await background();
  await apart();
  await shoot('light');
  await page.emulateMedia({ colorScheme: 'dark' });
  assert.notEqual(await background(), light);
  await shoot('dark');
  await page.setViewportSize({ width: 320, height: 700 });
  await page.waitForFunction(() => document.getElementById('graph').viewBox.baseVal.width < 320);
  await fits();
  await apart();
  await shoot('narrow-dark');
  await page.emulateMedia({ colorScheme: 'light' });
  await shoot('narrow-light');
  await page.setViewportSize({ width: 768, height: 900 });
  await page.waitForFunction(() => document.getElementById('graph').viewBox.baseVal.width > 600);
  await fits();
  await apart();
  await shoot('middle');
  await page.setViewportSize({ width: 1280, height: 900 });
  await page.waitForFunction(() => document.getElementById('graph').viewBox.baseVal.width > 700);

  // Without a mouse.
  const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.dataset.state || document.activeElement.className);
  const tabTo = async (wanted) => {
    for (let presses = 0; presses < 30; presses += 1) {
      await page.keyboard.press('Tab');
      if (await focused() === wanted) return;
    }
    assert.fail(`Tab never comes to ${wanted}`);
  };
  await page.locator('body').click({ position: { x: 3, y: 500 } });
  await tabTo('running');
  await page.keyboard.press('ArrowRight');
  assert.notEqual(await focused(), 'running');
  await page.keyboard.press('Enter');
  assert.match(await text('#ways-title'), /What can happen in/);
  await shoot('chosen');
  await page.keyboard.press('Enter');
  assert.equal(await text('#ways-title'), 'What can happen next');
  await tabTo('spec');
  await page.keyboard.type('{"no": ');
  await tabTo('configure');
  await page.keyboard.press('Enter');
  await page.locator('#outcome[data-tone=bad]').waitFor();
  assert.match(await text('#outcome'), /This is no spec/);
  assert.equal(await focused(), 'spec');
  await tabTo('terminate');
  await page.keyboard.press('Enter');
  const dialog = page.locator('#terminate-dialog');
  await dialog.waitFor();
  assert.equal(await focused(), 'terminate-cancel', 'the harmless one comes first');
  await shoot('dialog');
  await page.keyboard.press('Enter');
  await dialog.waitFor({ state: 'hidden' });
  assert.equal(await focused(), 'terminate', 'back where it was');
  await page.keyboard.press('Enter');
  await dialog.waitFor();
  await page.keyboard.press('Escape');
  await dialog.waitFor({ state: 'hidden' });
  assert.equal(await page.locator('body').getAttribute('data-status'), 'running', 'nothing was terminated');
  for (const field of await page.locator('input, textarea, button, svg').all()) {
    const name = await field.evaluate((one) => one.labels?.[0]?.innerText || one.innerText || one.getAttribute('aria-labelledby'));
    assert.ok(name, `a control without a name: ${await field.evaluate((one) => one.outerHTML)}`);
  }
  assert.deepEqual(complaints, []);

  // Where a token is needed, the page asks for it, keeps it in the tab and sends it with everything. The server of this
  // test needs none, so what stands between them refuses whoever has none.
  const guarded = await context.newPage();
  const shown = [];
  await guarded.route((url) => url.pathname !== '/ui', async (route) => {
    shown.push(route.request().url());
    const given = await route.request().headerValue('authorization');
    if (given === 'Bearer right') return route.continue();
    const error = given ? 'failed to verify authorization token' : 'invalid authorization token';
    return route.fulfill({ status: given ? 401 : 400, contentType: 'application/json', body: JSON.stringify({ error }) });
  });
  await guarded.goto(`${address}/ui`);
  await guarded.locator('#gate').waitFor();
  assert.equal(await guarded.evaluate(() => document.activeElement.id), 'token');
  await guarded.keyboard.type('wrong');
  await guarded.keyboard.press('Enter');
  await guarded.locator('#gate-error:not(:empty)').waitFor();
  await guarded.keyboard.type('right');
  await guarded.keyboard.press('Enter');
  await guarded.locator('#link[data-link=live]').waitFor();
  assert.ok(await guarded.locator('#gate').isHidden());
  await guarded.reload();
  await guarded.locator('#link[data-link=live]').waitFor();
  assert.ok(shown.length > 5 && shown.every((url) => !/right|wrong/.test(url)), 'the token is in an address');
  await guarded.close();

  // A refusal of the server is told in its words.
  await page.locator('#spec').fill('{"format_version": 1.0}');
  await page.locator('#configure').click();
  await page.waitForFunction(() => /missing field/.test(document.getElementById('outcome').textContent));
  assert.match(await text('#outcome'), /422.*missing field/s);
  // The browser itself says that such an answer came.
  assert.ok(complaints.length <= 1, complaints.join('\n'));
  complaints.length = 0;

  // What Postgres asks for, by hand: there is nothing to fetch from, and so nothing new. Both changes are shown.
  const before = Number(await newest.getAttribute('data-seq'));
  await page.locator('#refresh').click();
  await page.waitForFunction((seq) => Number(document.querySelector('#history li').dataset.seq) > seq + 1, before);
  await page.locator('#outcome[data-tone=good]').waitFor();
  await page.locator('body[data-status=running]').waitFor();
  assert.match(await newest.innerText(), /same pageservers/);
  assert.equal(await lit.getAttribute('data-state'), 'running');
  await shoot('refreshed');

  // The end, as it happens.
  await page.locator('#terminate').click();
  await page.locator('input[value=immediate]').check();
  await page.locator('#terminate-confirm').click();
  await page.locator('body[data-status=terminated]').waitFor();
  await page.locator('#link[data-link=ended]').waitFor();
  assert.match(await text('#trouble'), /has ended.*terminated/);
  assert.match(await newest.innerText(), /terminated/);
  assert.ok(await page.locator('#terminate').isDisabled());
  await shoot('ended');
  assert.equal(await node.ended, 0);
  assert.deepEqual(elsewhere, [], 'requests to other hosts');
  // Asking a server that is gone is what the browser complains of, and nothing else.
  assert.deepEqual(complaints.filter((complaint) => !complaint.includes('ERR_CONNECTION')), []);
} catch (error) {
  console.error(error);
  console.error(node.log().split('\n').slice(-20).join('\n'));
  process.exitCode = 1;
} finally {
  await browser?.close();
  if (node.child.exitCode === null) {
    node.child.kill('SIGTERM');
    await node.ended;
  }
}
