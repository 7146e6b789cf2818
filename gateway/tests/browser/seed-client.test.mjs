/**
 * The seed page promises that its client code works. So that very code is cut out of the page, unchanged but for the
 * URL, and run in real Chromium against a real gateway: the JavaScript example by itself, the example followed by the
 * heartbeat handler, and the complete React component.
 *
 * The pages come from http://localhost:3000, the origin that the gateway allows by default. The three run side by
 * side in one browser; the restart at the end is one for all.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { dirname } from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import * as esbuild from 'esbuild';
import { assertConsecutive, Gateway, launchChromium, Log, ofType, seedPage, slotsOf, TICK_MS, wireOf } from './support.mjs';

const SEED_URL = 'ws://localhost:5000/ws/analytics';
const PORT = 3000;
const PING_MS = 30_000;
const PONG_TIMEOUT_MS = 10_000;
const KEPT_MS = 100_000;
/** The component's third delay is 4 s, and the restarted gateway may take a moment. */
const RECONNECT_MS = 30_000;

/** The first fenced block after a heading of the page. */
function blockUnder(markdown, heading) {
  const start = markdown.indexOf(`\n${heading}\n`);
  assert.ok(start >= 0, `the seed page has no heading "${heading}"`);
  const block = markdown.slice(start).match(/\n```[a-z]*\n([\s\S]*?)\n```\n?/);
  assert.ok(block, `no code under "${heading}"`);
  return block[1];
}

/** The code with the gateway's URL in the place of the seed's: the one change there is. */
function pointedAt(code, url) {
  const parts = code.split(SEED_URL);
  assert.equal(parts.length, 2, 'the URL stands once in the code');
  return parts.join(url);
}

async function bundle(contents, virtual = {}) {
  const plugin = {
    name: 'seed',
    setup(build) {
      build.onResolve({ filter: /^seed:/ }, ({ path }) => ({ path, namespace: 'seed' }));
      build.onLoad({ filter: /.*/, namespace: 'seed' }, ({ path }) => ({
        contents: virtual[path],
        loader: 'tsx',
        resolveDir: dirname(fileURLToPath(import.meta.url)),
      }));
    },
  };
  const { outputFiles } = await esbuild.build({
    stdin: { contents, loader: 'tsx', resolveDir: dirname(fileURLToPath(import.meta.url)) },
    plugins: [plugin],
    bundle: true,
    format: 'iife',
    define: { 'process.env.NODE_ENV': '"production"' },
    write: false,
    logLevel: 'silent',
  });
  return outputFiles[0].text;
}

/** Serves `scripts` ({ name: code }), each with a page of its own, on both loopback addresses of `localhost`. */
async function serve(scripts) {
  const respond = ({ url }, answer) => {
    const [, name, script] = url.match(/^\/([a-z]+)(\.js)?$/) ?? [];
    const known = Object.hasOwn(scripts, name ?? '');
    const body = known && (script ? scripts[name] : `<!doctype html><link rel="icon" href="data:,"><div id="root"></div><script src="/${name}.js"></script>`);
    answer.writeHead(known ? 200 : 404, { 'content-type': script ? 'text/javascript; charset=utf-8' : 'text/html; charset=utf-8' });
    answer.end(body || '');
  };
  const servers = [];
  for (const host of ['127.0.0.1', '::1']) {
    const server = createServer(respond).listen(PORT, host);
    try {
      await once(server, 'listening');
      servers.push(server);
    } catch (error) {
      if (error.code === 'EADDRINUSE') throw new Error(`port ${PORT} is in use: this test needs the gateway's default allowed origin, http://localhost:${PORT}; stop what listens there`);
      if (host === '127.0.0.1') throw error; // A machine without IPv6 is fine.
    }
  }
  return () => servers.forEach((server) => {
    server.closeAllConnections();
    server.close();
  });
}

/** A page, its wire, and what its code said on the console (as values, not as text). */
async function openPage(browser, name) {
  const page = await browser.newPage();
  const said = new Log();
  page.on('console', async (message) => {
    const values = await Promise.all(message.args().map((arg) => arg.jsonValue().catch(() => null)));
    said.push(values);
  });
  page.on('pageerror', (error) => said.push(['uncaught', String(error)]));
  const wire = await wireOf(page);
  await page.goto(`http://localhost:${PORT}/${name}`);
  return { page, wire, said };
}

/** Waits until the socket has outlived `KEPT_MS` with three pings answered, each within its deadline. */
async function keptPast100Seconds(wire) {
  await wire.until('snapshot after 100 s', KEPT_MS + 4 * TICK_MS, (entries) => {
    assert.ok(!entries.some((entry) => entry.direction === 'closed'), 'the socket was closed');
    return ofType(entries, 'realtime_update').some((entry) => entry.at >= KEPT_MS);
  });
  const pings = ofType(wire.entries, 'ping');
  const pongs = ofType(wire.entries, 'pong', 'sent');
  assert.deepEqual([pings.length, pongs.length], [3, 3]);
  pings.forEach((ping, index) => assert.ok(pongs[index].at >= ping.at && pongs[index].at < ping.at + PONG_TIMEOUT_MS));
  const updates = ofType(wire.entries, 'realtime_update').map((entry) => entry.message);
  assertConsecutive(slotsOf(updates));
  return pongs;
}

let gateway;
let browser;
let stopServing;
before(async () => {
  const markdown = await seedPage();
  const example = blockUnder(markdown, '### JavaScript Example');
  const heartbeat = blockUnder(markdown, '### Client Behavior');
  const component = blockUnder(markdown, '## Complete Example (React)');
  gateway = await Gateway.start();
  const mount = `
    import React from 'react';
    import { createRoot } from 'react-dom/client';
    import { RealtimeVisitors } from 'seed:RealtimeVisitors';
    createRoot(document.getElementById('root')).render(<RealtimeVisitors />);`;
  stopServing = await serve({
    plain: await bundle(pointedAt(example, gateway.ws)),
    heartbeat: await bundle(`${pointedAt(example, gateway.ws)}\n${heartbeat}`),
    react: await bundle(mount, { 'seed:RealtimeVisitors': pointedAt(component, gateway.ws) }),
  });
  browser = await launchChromium();
});
after(async () => {
  stopServing?.();
  await browser?.close();
  await gateway?.stop();
});

test('the seed\'s client code, unchanged but for the URL', { concurrency: true }, async (t) => {
  const react = await openPage(browser, 'react');
  const plain = await openPage(browser, 'plain');
  const heartbeat = await openPage(browser, 'heartbeat');
  const shown = (text) => react.page.waitForFunction((pattern) => new RegExp(pattern).test(document.getElementById('root').innerText), text, { timeout: RECONNECT_MS });

  const together = [
    t.test('React: the number is shown, and follows the wire', async () => {
      await shown('^Realtime Visitors\\s+\\d+\\s+Last updated: ');
      const [update] = await react.wire.until('snapshot', 3 * TICK_MS, (entries) => {
        const updates = ofType(entries, 'realtime_update');
        return updates.length > 0 && updates;
      });
      assert.equal(react.wire.entries.find((entry) => entry.direction === 'received').message.type, 'init');
      await shown(`\\s${update.message.data.active_visitors}\\s`);
    }),

    t.test('React: kept past 100 s, three pings answered', () => keptPast100Seconds(react.wire)),

    t.test('heartbeat handler: kept past 100 s, three pings answered with a timestamp', async () => {
      const pongs = await keptPast100Seconds(heartbeat.wire);
      assert.ok(pongs.every((pong) => !Number.isNaN(Date.parse(pong.message.timestamp))));
    }),

    t.test('JavaScript example: init, snapshots and events are received', async () => {
      const received = (type) => (entries) => entries.find(([tag, value]) => tag === 'Received:' && value?.type === type)?.[1];
      await plain.said.until('init', 10_000, received('init'));
      await gateway.post(
        { event_type: 'page_view', page_url: '/cv?from=seed' },
        { event_type: 'cv_theme_change', theme: 'backend' },
        { event_type: 'letter_generate', letter_type: 'motivation' },
      );
      const event = await plain.said.until('new_event', 10_000, received('new_event'));
      assert.deepEqual([event.data.event_type, event.data.page_url], ['page_view', '/cv']);
      assert.equal((await plain.said.until('theme_stats', 10_000, received('theme_stats'))).data.theme, 'backend');
      assert.equal((await plain.said.until('letter_generated', 10_000, received('letter_generated'))).data.letter_type, 'motivation');
      await plain.said.until('realtime_update', 3 * TICK_MS, received('realtime_update'));
      assert.deepEqual(plain.said.entries[0], ['Connected to analytics WebSocket']);
    }),

    t.test('JavaScript example: it answers no ping, so its handler is told of the close after 40 s', async () => {
      await plain.said.until('close', PING_MS + PONG_TIMEOUT_MS + 15_000, (entries) => entries.some(([text]) => text === 'WebSocket connection closed'));
      // The console and the wire are told of the close by different messages of Chromium, in either order.
      const end = await plain.wire.until('close', 10_000, (entries) => entries.find((entry) => entry.direction === 'closed'));
      assert.ok(end.at > PING_MS + PONG_TIMEOUT_MS - 1_000, `closed after ${end.at} ms`);
    }),
  ];
  await Promise.all(together);

  await t.test('React: after kill -9 and a restart of the node it reconnects and shows the number again', async () => {
    await gateway.kill();
    await shown('^Connecting to realtime analytics');
    await heartbeat.said.until('close', 10_000, (entries) => entries.some(([text]) => text === 'WebSocket connection closed'));
    const before = react.wire.entries.length;
    await gateway.restart();
    const init = await react.wire.until('init after the restart', RECONNECT_MS, (entries) => ofType(entries.slice(before), 'init')[0]);
    await shown(`^Realtime Visitors\\s+${init.message.data.active_visitors}\\s+Last updated: `);
    await react.wire.until('snapshot after the restart', 3 * TICK_MS, (entries) => ofType(entries.slice(before), 'realtime_update')[0]);
  });

  await t.test('nothing in the seed\'s code threw', () => {
    for (const { said } of [react, plain, heartbeat]) {
      const faults = said.entries.filter(([text]) => text === 'uncaught' || text === 'Failed to parse message:');
      assert.deepEqual(faults, []);
    }
  });
});
