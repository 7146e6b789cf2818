/**
 * What the browser tests share: a gateway process, a Chromium, and a log of the wire that can be waited on.
 * Nothing here sleeps: every wait is for an event and has a deadline that says what it was waiting for.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, readFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { performance } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

export const INGEST_TOKEN = 'browser-test-token';
export const TICK_MS = 5_000;
/** From start to the first snapshot: generous, since CI compiles and runs Chromium beside it. */
const START_TIMEOUT_MS = 30_000;
const OUTPUT_BYTES_MAX = 64 * 1024;

const fromHere = (path) => fileURLToPath(new URL(path, import.meta.url));
const GATEWAY_BIN = process.env.GATEWAY_BIN ?? fromHere('../../../target/debug/gateway');

/** Resolves with what `promise` gives, or rejects after `ms` naming what did not come. */
export function within(ms, what, promise) {
  let timer;
  const deadline = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no ${what} within ${ms} ms`)), ms);
  });
  return Promise.race([promise, deadline]).finally(() => clearTimeout(timer));
}

/** An append-only log that can be waited on: `until` looks at all entries now and again after each `push`. */
export class Log {
  entries = [];
  #waiters = new Set();

  push(entry) {
    this.entries.push(entry);
    for (const look of [...this.#waiters]) look();
  }

  /** The first truthy result of `pick(entries)`. */
  until(what, ms, pick) {
    let look;
    const found = new Promise((resolve, reject) => {
      look = () => {
        try {
          const result = pick(this.entries);
          if (result) resolve(result);
        } catch (error) {
          reject(error);
        }
      };
      this.#waiters.add(look);
      look();
    });
    return within(ms, what, found).finally(() => this.#waiters.delete(look));
  }
}

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}

/** One real gateway with the embedded backplane, on ports of its own that it keeps over a restart. */
export class Gateway {
  #child = null;
  #output = '';

  static async start() {
    await access(GATEWAY_BIN).catch(() => {
      throw new Error(`no gateway at ${GATEWAY_BIN}: build it (cargo build -p gateway) or set GATEWAY_BIN`);
    });
    const gateway = new Gateway();
    gateway.port = await freePort();
    gateway.internalPort = await freePort();
    gateway.http = `http://127.0.0.1:${gateway.port}`;
    gateway.ws = `ws://127.0.0.1:${gateway.port}/ws/analytics`;
    await gateway.restart();
    return gateway;
  }

  /** Starts the process (again) and resolves once it is ready to upgrade. */
  async restart() {
    const inherited = Object.entries(process.env).filter(([name]) => !/^(GATEWAY_|REDIS_|OTEL_)/.test(name));
    const env = {
      ...Object.fromEntries(inherited),
      GATEWAY_LISTEN: `127.0.0.1:${this.port}`,
      GATEWAY_INTERNAL_LISTEN: `127.0.0.1:${this.internalPort}`,
      GATEWAY_INGEST_TOKEN: INGEST_TOKEN,
    };
    const child = spawn(GATEWAY_BIN, [], { env, stdio: ['ignore', 'pipe', 'pipe'] });
    this.#child = child;
    const keep = (chunk) => {
      this.#output = (this.#output + chunk).slice(-OUTPUT_BYTES_MAX);
    };
    child.stdout.on('data', keep);
    child.stderr.on('data', keep);
    const died = once(child, 'exit').then(([code, signal]) => {
      throw new Error(`the gateway ended (code ${code}, signal ${signal}) before it was ready:\n${this.#output}`);
    });
    died.catch(() => {});
    await Promise.race([this.#ready(), died]);
  }

  /** Polls `/readyz`: a process has no event for "ready" that a stranger can wait for. */
  async #ready() {
    const end = performance.now() + START_TIMEOUT_MS;
    for (;;) {
      const ready = await fetch(`http://127.0.0.1:${this.internalPort}/readyz`).then((answer) => answer.ok, () => false);
      if (ready) return;
      if (performance.now() > end) throw new Error(`the gateway was not ready within ${START_TIMEOUT_MS} ms:\n${this.#output}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  /** kill -9: no drain, no close frame. */
  kill() {
    return this.#end('SIGKILL');
  }

  async #end(signal) {
    const child = this.#child;
    this.#child = null;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const gone = once(child, 'exit');
    child.kill(signal);
    await gone;
  }

  /** The end of a test: nothing is to be drained, so nothing is waited for. */
  stop() {
    return this.#end('SIGKILL');
  }

  async post(...events) {
    const answer = await fetch(`${this.http}/api/v1/events`, {
      method: 'POST',
      headers: { authorization: `Bearer ${INGEST_TOKEN}`, 'content-type': 'application/json' },
      body: JSON.stringify(events),
    });
    const body = await answer.text();
    assert.equal(answer.status, 202, body);
    assert.equal(JSON.parse(body).accepted, events.length, body);
  }
}

/** Real Chromium, headless, from the system: nothing is downloaded. */
export async function launchChromium() {
  const known = [
    process.env.CHROMIUM,
    '/usr/bin/chromium',
    '/usr/bin/chromium-browser',
    '/usr/bin/google-chrome',
    '/Applications/Chromium.app/Contents/MacOS/Chromium',
    '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome',
  ].filter(Boolean);
  for (const executablePath of known) {
    const found = await access(executablePath).then(() => true, () => false);
    // No sandbox: CI runs as root, where Chromium's sandbox refuses to start. Only pages of this repository are opened.
    if (found) return chromium.launch({ executablePath, args: ['--no-sandbox'] });
  }
  throw new Error(`no Chromium at ${known.join(', ')}: run .ci/install-browser-tools.sh or set CHROMIUM`);
}

/**
 * Every frame of a page's WebSockets as DevTools sees it: `{ direction: 'sent' | 'received', text, message, at }`,
 * `at` in ms since the page's first handshake; a further `{ direction: 'open' | 'closed', at }` per socket.
 */
export async function wireOf(page) {
  const log = new Log();
  const devtools = await page.context().newCDPSession(page);
  let first = null;
  const entry = (direction, timestamp, payload) => {
    first ??= timestamp;
    const parsed = payload === undefined ? {} : { text: payload, message: JSON.parse(payload) };
    log.push({ direction, at: (timestamp - first) * 1000, ...parsed });
  };
  devtools.on('Network.webSocketHandshakeResponseReceived', ({ timestamp }) => entry('open', timestamp));
  devtools.on('Network.webSocketClosed', ({ timestamp }) => entry('closed', timestamp));
  devtools.on('Network.webSocketFrameReceived', ({ timestamp, response }) => {
    if (response.opcode === 1) entry('received', timestamp, response.payloadData);
  });
  devtools.on('Network.webSocketFrameSent', ({ timestamp, response }) => {
    if (response.opcode === 1) entry('sent', timestamp, response.payloadData);
  });
  await devtools.send('Network.enable');
  return log;
}

export const ofType = (entries, type, direction = 'received') =>
  entries.filter((entry) => entry.direction === direction && entry.message?.type === type);

/** Slots (the number of the 5 s interval) of the snapshots among `messages`, in order. */
export const slotsOf = (messages) => messages.map((message) => Math.floor(Date.parse(message.data.timestamp) / TICK_MS));

/** Inv. SLOT: each slot once, none left out. */
export function assertConsecutive(slots) {
  slots.slice(1).forEach((slot, index) => assert.equal(slot, slots[index] + 1, `slots ${slots}`));
}

export const seedPage = () => readFile(fromHere('../../../docs/seed-websocket-protocol.md'), 'utf8');
