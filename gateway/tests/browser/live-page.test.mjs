/**
 * The live page as a stranger gets it: from a real gateway, in real Chromium, under its real Content-Security-Policy.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Gateway, launchChromium, Log, ofType, TICK_MS, wireOf } from './support.mjs';

const POLICY = {
  'default-src': "'none'",
  'script-src': "'self'",
  'style-src': "'self'",
  'connect-src': "'self' ws: wss:",
  'img-src': "'self' data:",
  'base-uri': "'none'",
  'form-action': "'none'",
  'frame-ancestors': "'none'",
};
const SEEN_MS = 10_000;
/** Delays are drawn anew each time, up to 1, 2, 4 … s; the restarted gateway may take a moment. */
const RECONNECT_MS = 30_000;

let gateway;
let browser;
before(async () => {
  gateway = await Gateway.start();
  browser = await launchChromium();
});
after(async () => {
  await browser?.close();
  await gateway?.stop();
});

/** The page, its wire, and every complaint of the browser: errors, exceptions, refused requests, policy violations. */
async function openLivePage(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, ...options });
  const page = await context.newPage();
  const complaints = new Log();
  page.on('console', (message) => ['error', 'warning'].includes(message.type()) && complaints.push(message.text()));
  page.on('pageerror', (error) => complaints.push(String(error)));
  page.on('requestfailed', (request) => complaints.push(`${request.url()} failed`));
  page.on('response', (response) => response.status() >= 400 && complaints.push(`${response.url()} ${response.status()}`));
  await page.exposeFunction('reportViolation', (what) => complaints.push(what));
  await page.addInitScript(() => {
    addEventListener('securitypolicyviolation', (event) => window.reportViolation(`policy: ${event.violatedDirective} ${event.blockedURI}`));
  });
  const wire = await wireOf(page);
  await page.goto(`${gateway.http}/`);
  return { page, wire, complaints, phase: (name, ms = SEEN_MS) => page.waitForFunction((wanted) => document.body.dataset.phase === wanted, name, { timeout: ms }) };
}

const textOf = (page, selector) => page.locator(selector).innerText();

test('the three files are served with their type and the policy', async () => {
  const rows = [['/', 'text/html'], ['/page.css', 'text/css'], ['/page.js', 'text/javascript']];
  for (const [path, type] of rows) {
    const answer = await fetch(gateway.http + path);
    assert.equal(answer.status, 200, path);
    assert.ok(answer.headers.get('content-type').startsWith(type), `${path}: ${answer.headers.get('content-type')}`);
    const policy = (answer.headers.get('content-security-policy') ?? '').split(';').map((directive) => directive.trim().split(/\s+/));
    assert.deepEqual(Object.fromEntries(policy.map(([name, ...sources]) => [name, sources.join(' ')])), POLICY, path);
  }
});

test('number, feed and themes come alive, and hostile text stays text', async () => {
  const { page, wire, complaints, phase } = await openLivePage();
  await phase('live');
  const init = await wire.until('init', SEEN_MS, (entries) => ofType(entries, 'init')[0]);
  assert.match(await textOf(page, '#visitors'), /^\d+$/);
  assert.equal(await textOf(page, '#state'), 'Live');
  assert.ok(init.at < 2_000);

  await gateway.post(
    { event_type: 'page_view', page_url: '/first?secret=1' },
    { event_type: 'page_view', page_url: '/<img src=x onerror=alert(1)>' },
    { event_type: 'cv_theme_change', theme: 'backend', page_url: '/cv' },
    { event_type: 'letter_generate', letter_type: 'motivation' },
  );
  await page.locator('#feed li', { hasText: 'Motivation letter written' }).waitFor({ timeout: SEEN_MS });
  const rows = await page.locator('#feed li').evaluateAll((items) => items.map((item) => [...item.querySelectorAll('.what, .where')].map((cell) => cell.textContent)));
  const shownPaths = rows.map(([, where]) => where);
  assert.ok(shownPaths.includes('/first'), JSON.stringify(rows));
  assert.ok(shownPaths.indexOf('/first') > 0, 'newest first');
  const hostile = ofType(wire.entries, 'new_event').map((entry) => entry.message.data.page_url).find((url) => url.includes('img'));
  assert.ok(hostile && shownPaths.includes(hostile), `${hostile} is shown letter by letter`);
  assert.equal(await page.locator('#feed img, #feed script').count(), 0);

  await page.locator('#themes li', { hasText: 'backend' }).waitFor({ timeout: SEEN_MS });
  assert.match((await textOf(page, '#themes li')).replace(/\s+/g, ' '), /^backend 1 100\.0 %/);
  assert.ok((await page.locator('#themes .track i').boundingBox()).width > 50);

  const two = await wire.until('two snapshots', 4 * TICK_MS, (entries) => {
    const updates = ofType(entries, 'realtime_update');
    return updates.length >= 2 && updates;
  });
  await page.waitForFunction((count) => document.getElementById('visitors').textContent === count, String(two.at(-1).message.data.active_visitors), { timeout: SEEN_MS });
  assert.match(await page.locator('#line').getAttribute('d'), /^M[\d.]+ [\d.]+(L[\d.]+ [\d.]+)+/);
  assert.match(await page.locator('#chart').getAttribute('aria-label'), /lowest \d+, highest \d+, last \d+$/);
  assert.deepEqual(complaints.entries, []);
  await page.context().close();
});

test('a burst of events leaves a bounded feed', async () => {
  // Inv. BOUND: the page of a busy site holds fifty rows, not a day's worth.
  const { page, complaints, phase } = await openLivePage();
  await phase('live');
  await gateway.post(...Array.from({ length: 150 }, (_, index) => ({ event_type: 'page_view', page_url: `/burst/${index}` })));
  await page.locator('#feed li', { hasText: '/burst/149' }).waitFor({ timeout: SEEN_MS });
  assert.equal(await page.locator('#feed li').count(), 50);
  assert.match(await textOf(page, '#feed li:first-child'), /\/burst\/149/);
  assert.deepEqual(complaints.entries, []);
  await page.context().close();
});

test('kill -9 shows a countdown and dims the number; a restart brings it back', async () => {
  const { page, complaints, phase } = await openLivePage();
  await phase('live');
  assert.deepEqual(complaints.entries, []);
  // The first delay may be drawn as a few milliseconds; the gateway stays away until the state has been seen.
  const waiting = phase('waiting');
  await gateway.kill();
  await waiting;
  const seen = await page.waitForFunction(() => {
    const [state, announced, fresh, visitors] = ['state', 'announce', 'fresh', 'visitors'].map((id) => document.getElementById(id).textContent);
    return /^Reconnecting in \d+ s$/.test(state) && { announced, fresh, visitors };
  }, null, { timeout: RECONNECT_MS });
  const { announced, fresh, visitors } = await seen.jsonValue();
  assert.equal(announced, 'Connection lost, reconnecting');
  assert.match(fresh, /^last counted at /);
  assert.match(visitors, /^\d+$/, 'the last number stays');
  await gateway.restart();
  await phase('live', RECONNECT_MS);
  // A browser reports each refused connection by itself; nothing else may have been reported.
  assert.deepEqual(complaints.entries.filter((text) => !/^WebSocket connection to 'ws:.*' failed/.test(text)), []);
  await page.context().close();
});

test('phone and dark mode: nothing is cut off, and the palette follows the device', async () => {
  const phone = { viewport: { width: 320, height: 640 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true };
  const ground = {};
  for (const colorScheme of ['light', 'dark']) {
    const { page, complaints, phase } = await openLivePage({ ...phone, colorScheme, reducedMotion: 'reduce' });
    await phase('live');
    await gateway.post({ event_type: 'page_view', page_url: `/${'long-path-without-a-break'.repeat(12)}` });
    await page.locator('#feed li').first().waitFor({ timeout: SEEN_MS });
    const overflow = await page.evaluate(() => [document.documentElement, document.getElementById('feed')].map((box) => box.scrollWidth - box.clientWidth));
    assert.deepEqual(overflow, [0, 0], 'px too wide: the page, the feed');
    ground[colorScheme] = await page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
    assert.deepEqual(complaints.entries, []);
    await page.context().close();
  }
  assert.notEqual(ground.light, ground.dark);
});

test('the state is told to those who do not see it', async () => {
  const { page, phase } = await openLivePage();
  await phase('live');
  const devtools = await page.context().newCDPSession(page);
  await devtools.send('Accessibility.enable');
  const { nodes } = await devtools.send('Accessibility.getFullAXTree');
  const named = nodes.filter((node) => !node.ignored && node.name?.value).map((node) => [node.role.value, node.name.value]);
  const has = (role, pattern) => assert.ok(named.some(([kind, name]) => kind === role && pattern.test(name)), `${role} ${pattern} among ${JSON.stringify(named)}`);
  has('heading', /^\d+ visitors? right now$/);
  has('heading', /^As it happens$/);
  has('heading', /^Themes$/);
  has('image', /^Visitors over the last /);
  assert.equal(await page.locator('#announce').getAttribute('aria-live'), 'polite');
  assert.equal(await textOf(page, '#announce'), 'Live');
  await page.context().close();
});
