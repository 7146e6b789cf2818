/**
 * The live page's decisions, without a browser: each test holds the clock and the dice.
 * The page imports itself without a document, so this is the very file that the gateway serves.
 */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { describe, test } from 'node:test';
import * as page from '../../assets/page.js';

const asset = (name) => readFile(new URL(`../../assets/${name}`, import.meta.url), 'utf8');
const picture = (...frames) => frames.reduce((seen, frame) => page.reduce(seen, page.parse(JSON.stringify(frame)), 0), page.emptyPicture());
const at = (second) => new Date(Date.UTC(2025, 11, 8, 10, 30, second)).toISOString().replace('.000', '');
const update = (visitors, second, more = {}) => ({ type: 'realtime_update', data: { active_visitors: visitors, timestamp: at(second), ...more } });
const theme = (name, views, percentage) => ({ type: 'theme_stats', data: { theme: name, count: views, percentage } });

/** Feeds inputs `[kind or input, at]` to a link born at 0; `dice` is every random number. Returns the last outcome. */
function run(inputs, dice = 0.5) {
  let outcome = { link: page.newLink(0), effect: null };
  for (const [input, now] of inputs) outcome = page.step(outcome.link, typeof input === 'string' ? { kind: input } : input, now, dice);
  return outcome;
}
const close = (code, reason = '') => ({ kind: 'close', code, reason });

describe('messages', () => {
  test('the seed\'s examples are understood, each as what it is', () => {
    const rows = [
      ['{"type":"init","data":{"active_visitors":5,"timestamp":"2025-12-08T10:30:00Z"}}', { kind: 'snapshot', visitors: 5, at: Date.parse(at(0)), stale: false }],
      ['{"type":"realtime_update","data":{"active_visitors":5,"timestamp":"2025-12-08T10:30:00Z"}}', { kind: 'snapshot', visitors: 5, at: Date.parse(at(0)), stale: false }],
      ['{"type":"new_event","data":{"event_type":"page_view","page_url":"/cv","timestamp":"2025-12-08T10:30:05Z"}}', { kind: 'event', type: 'page_view', where: '/cv', at: Date.parse(at(5)) }],
      ['{"type":"theme_stats","data":{"theme":"backend","count":88,"percentage":25.8}}', { kind: 'theme', theme: 'backend', views: 88, percentage: 25.8 }],
      ['{"type":"letter_generated","data":{"letter_type":"motivation","timestamp":"2025-12-08T10:31:00Z"}}', { kind: 'letter', type: 'motivation', at: Date.parse(at(60)) }],
      ['{"type":"ping","timestamp":"2025-12-08T10:30:30Z"}', { kind: 'ping', timestamp: at(30) }],
    ];
    for (const [frame, expected] of rows) assert.deepEqual(page.parse(frame), expected, frame);
  });

  test('what is not the contract is nothing, never an exception', () => {
    const rows = [
      '', 'null', '5', '[]', '"init"', '{', '{"type":"init"}', '{"type":"init","data":null}', '{"type":"init","data":{}}',
      '{"type":"init","data":{"active_visitors":-1,"timestamp":"2025-12-08T10:30:00Z"}}',
      '{"type":"init","data":{"active_visitors":"5","timestamp":"2025-12-08T10:30:00Z"}}',
      '{"type":"init","data":{"active_visitors":5,"timestamp":"yesterday"}}',
      '{"type":"theme_stats","data":{"theme":"a","count":1,"percentage":101}}',
      '{"type":"theme_stats","data":{"theme":"","count":1,"percentage":1}}',
      '{"type":"new_event","data":{"page_url":"/"}}',
      '{"type":"toString","data":{}}', '{"type":"__proto__","data":{}}', '{"type":{"a":1},"data":{}}',
      `{"type":"ping","timestamp":"${'x'.repeat(page.MESSAGE_CHARS_MAX)}"}`,
    ];
    for (const frame of rows) assert.equal(page.parse(frame), null, frame.slice(0, 80));
    assert.equal(page.parse(new ArrayBuffer(4)), null, 'binary');
  });

  test('a pong names the ping it answers', () => {
    assert.equal(page.pong(at(30)), '{"type":"pong","timestamp":"2025-12-08T10:30:30Z"}');
    assert.equal(page.pong(''), '{"type":"pong"}');
  });
});

describe('picture', () => {
  test('the number, its time and its flag follow the last snapshot', () => {
    const seen = picture(update(5, 0), update(7, 5));
    assert.deepEqual([seen.visitors, seen.at, seen.stale], [7, Date.parse(at(5)), false]);
  });

  test('a stale snapshot keeps its old time and adds nothing to the history', () => {
    const seen = picture(update(5, 0), update(7, 5), update(7, 5, { stale: true }));
    assert.deepEqual([seen.at, seen.stale, seen.samples.length], [Date.parse(at(5)), true, 2]);
    assert.equal(picture(update(5, 0), update(7, 5), update(5, 0, { stale: true })).samples.length, 2, 'not even one from a node that is further behind');
    assert.equal(picture(update(7, 5, { stale: true }), update(8, 10)).stale, false, 'and the next true one ends it');
  });

  test('one instant is one sample, and a clock that went back takes the contradicted future with it', () => {
    assert.deepEqual(picture(update(5, 0), update(6, 0)).samples.map((sample) => sample.visitors), [6]);
    assert.deepEqual(picture(update(1, 0), update(2, 5), update(3, 10), update(4, 5)).samples.map((sample) => sample.visitors), [1, 4]);
  });

  test('the feed is newest first and numbered', () => {
    const event = (url) => ({ type: 'new_event', data: { event_type: 'page_view', page_url: url, timestamp: at(0) } });
    const seen = picture(event('/a'), event('/b'), theme('backend', 1, 100), { type: 'letter_generated', data: { letter_type: 'motivation', timestamp: at(1) } });
    assert.deepEqual(seen.feed.map(({ seq, kind, what, where }) => [seq, kind, what, where]), [
      [4, 'letter', 'Motivation letter written', ''],
      [3, 'theme', 'Theme viewed', 'backend'],
      [2, 'event', 'Page view', '/b'],
      [1, 'event', 'Page view', '/a'],
    ]);
    assert.deepEqual([seen.events, seen.letters], [4, 1]);
  });

  test('a message without a time is dated by the wire, not by the viewer\'s clock', () => {
    const times = (...frames) => frames.reduce((seen, frame) => page.reduce(seen, page.parse(JSON.stringify(frame)), 77), page.emptyPicture()).feed.map((row) => row.at);
    assert.deepEqual(times(theme('backend', 1, 100)), [77]);
    assert.deepEqual(times(update(5, 10), theme('backend', 1, 100)), [Date.parse(at(10))]);
    const event = { type: 'new_event', data: { event_type: 'page_view', page_url: '/', timestamp: at(12) } };
    assert.deepEqual(times(update(5, 10), event, theme('backend', 1, 100)), [Date.parse(at(12)), Date.parse(at(12))]);
  });

  test('every collection has a bound', () => {
    // Inv. BOUND: ten thousand of everything, and the page holds what it said it holds.
    let seen = page.emptyPicture();
    for (let n = 1; n <= 10_000; n += 1) {
      seen = page.reduce(seen, { kind: 'snapshot', visitors: n, at: n * page.TICK_MS, stale: false }, 0);
      seen = page.reduce(seen, { kind: 'event', type: 'page_view', where: '/', at: n }, 0);
      if (n <= 500) seen = page.reduce(seen, { kind: 'theme', theme: `t${n}`, views: n, percentage: 0.1 }, 0);
    }
    assert.deepEqual([seen.samples.length, seen.feed.length, seen.themes.length], [page.SAMPLES_MAX, page.FEED_MAX, page.THEMES_MAX]);
    assert.equal(page.themeBars(seen).length, page.THEMES_SHOWN);
    assert.equal(page.parse(JSON.stringify({ type: 'new_event', data: { event_type: 'x'.repeat(5000) } })).type.length, page.TEXT_CHARS_MAX);
  });
});

describe('themes', () => {
  const shares = (seen) => page.themeBars(seen).map(({ theme: name, share }) => [name, share.toFixed(1)]);

  test('the shares of all themes move when one theme is looked at', () => {
    assert.deepEqual(shares(picture(theme('backend', 1, 100))), [['backend', '100.0']]);
    assert.deepEqual(shares(picture(theme('backend', 1, 100), theme('frontend', 1, 50))), [['backend', '50.0'], ['frontend', '50.0']]);
  });

  test('the share just received is shown as it was sent, and the total stays exact as it grows', () => {
    const views = { backend: 88, frontend: 253 };
    let total = 341;
    let seen = picture(theme('backend', 88, 25.8));
    assert.equal(seen.themeViews, 341);
    for (let n = 0; n < 2000; n += 1) {
      const name = n % 7 === 0 ? 'backend' : 'frontend';
      views[name] += 1;
      total += 1;
      const sent = Math.round((1000 * views[name]) / total) / 10;
      seen = page.reduce(seen, { kind: 'theme', theme: name, views: views[name], percentage: sent }, 0);
      assert.equal(seen.themeViews, total);
      assert.equal(page.themeBars(seen).find((bar) => bar.theme === name).share.toFixed(1), sent.toFixed(1));
    }
  });

  test('a count that began anew is believed over the old total', () => {
    assert.equal(picture(theme('backend', 5000, 50), theme('backend', 1, 100)).themeViews, 1);
    assert.equal(page.viewsOfAll(10, { views: 0, percentage: 0 }), 10);
    assert.ok(Number.isFinite(page.viewsOfAll(0, { views: 3, percentage: 0 })));
  });
});

describe('sparkline', () => {
  const samples = (...values) => values.map((visitors, index) => ({ at: index * page.TICK_MS, visitors }));

  test('nothing known draws nothing; one sample is a tip without a line', () => {
    assert.equal(page.sparkline([]), null);
    const line = page.sparkline(samples(4));
    assert.deepEqual([line.tip.x, page.pathData(line.runs, 100, 10, { floor: false })], [1, '']);
  });

  test('all points lie in the unit square, time to the right, and the peak is not glued to the edge', () => {
    for (const values of [[0, 0, 0], [1, 1], [3, 9, 2, 7], [10_000, 10_020, 9_990], [0, 1_000_000]]) {
      const line = page.sparkline(samples(...values));
      const points = line.runs.flat();
      assert.ok(points.every(({ x, y }) => x >= 0 && x <= 1 && y >= 0 && y <= 1), JSON.stringify(points));
      assert.ok(points.every(({ x }, index) => index === 0 || x > points[index - 1].x));
      assert.ok(line.high > line.peak && line.low <= line.least);
    }
  });

  test('a hole in time is a hole in the line', () => {
    const line = page.sparkline([...samples(1, 2, 3), { at: 60_000, visitors: 4 }, { at: 65_000, visitors: 5 }]);
    assert.deepEqual(line.runs.map((run) => run.length), [3, 2]);
    const path = page.pathData(line.runs, 100, 10, { floor: true });
    assert.deepEqual([path.match(/M/g).length, path.match(/Z/g).length], [2, 2]);
  });

  test('a large calm number is magnified, a small one stands on zero', () => {
    assert.ok(page.sparkline(samples(10_000, 10_020)).low > 9_000);
    assert.equal(page.sparkline(samples(3, 9)).low, 0);
  });
});

describe('link', () => {
  test('the address follows the page, TLS included', () => {
    assert.equal(page.socketUrl(new URL('http://localhost:5000/?x=1')), 'ws://localhost:5000/ws/analytics');
    assert.equal(page.socketUrl(new URL('https://api.maicivy.dev/')), 'wss://api.maicivy.dev/ws/analytics');
    assert.equal(page.socketUrl(new URL('http://[::1]:5000/')), 'ws://[::1]:5000/ws/analytics');
  });

  test('loopback is told from the network', () => {
    for (const name of ['localhost', '127.0.0.1', '127.8.9.10', '[::1]', 'a.localhost']) assert.ok(page.isLoopback(name), name);
    for (const name of ['example.org', '10.0.0.1', 'localhost.example.org', '127.evil.org']) assert.ok(!page.isLoopback(name), name);
  });

  test('backoff doubles from 1 s to 30 s and spreads over all of it', () => {
    const caps = [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000];
    caps.forEach((cap, attempt) => {
      assert.equal(page.backoffDelay(attempt, 0), 0);
      assert.equal(page.backoffDelay(attempt, 0.5), cap / 2);
      assert.ok(page.backoffDelay(attempt, 1 - Number.EPSILON) < cap);
    });
    assert.equal(page.backoffDelay(1e9, 0.5), 15_000);
  });

  test('close codes', () => {
    const rows = [
      [1000, '', { kind: 'backoff' }],
      [1001, '', { kind: 'backoff' }],
      [1006, '', { kind: 'backoff' }],
      [1011, '', { kind: 'backoff' }],
      [1013, '', { kind: 'backoff' }],
      [4408, '', { kind: 'backoff' }],
      [1012, '{"retry_after_ms":1250}', { kind: 'after', afterMs: 1250 }],
      [1012, '{"retry_after_ms":0}', { kind: 'after', afterMs: 0 }],
      [1012, '{"retry_after_ms":86400000}', { kind: 'after', afterMs: page.RETRY_AFTER_MAX_MS }],
      [1012, '{"retry_after_ms":-1}', { kind: 'backoff' }],
      [1012, '{"retry_after_ms":"1"}', { kind: 'backoff' }],
      [1012, 'service restart', { kind: 'backoff' }],
      [1012, 'null', { kind: 'backoff' }],
      ...[1002, 1003, 1007, 1008, 1009, 4400, 4409, 4499].map((code) => [code, '', { kind: 'stop' }]),
    ];
    for (const [code, reason, expected] of rows) assert.deepEqual(page.closePolicy(code, reason), expected, `${code} ${reason}`);
  });

  test('it is live from the first message on, not from the open socket', () => {
    assert.equal(run([['open', 10]]).link.phase, 'connecting');
    assert.equal(run([['open', 10], ['message', 20]]).link.phase, 'live');
  });

  test('failures in a row wait longer and longer; flapping does not count as success', () => {
    const inputs = [];
    const delays = [];
    for (let n = 0, now = 0; n < 7; n += 1) {
      inputs.push(['open', now], ['message', now], [close(1006), now + page.STABLE_AFTER_MS - 1]);
      const { link } = run(inputs, 0.5);
      delays.push(link.retryAt - (now + page.STABLE_AFTER_MS - 1));
      now = link.retryAt;
      inputs.push(['time', now]);
    }
    assert.deepEqual(delays, [500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000]);
  });

  test('five stable seconds forgive', () => {
    const bad = [[close(1006), 1], ['time', 501], [close(1006), 502], ['time', 1_502]];
    assert.equal(run(bad).link.failures, 2);
    const good = [...bad, ['open', 2_000], ['message', 2_000], [close(1006), 2_000 + page.STABLE_AFTER_MS]];
    const { link } = run(good);
    assert.deepEqual([link.failures, link.retryAt], [1, 7_500]);
  });

  test('a draining gateway names the moment, and it is obeyed to the millisecond', () => {
    const { link } = run([['open', 0], ['message', 0], [close(1012, '{"retry_after_ms":2345}'), 100]], 0.9);
    assert.deepEqual([link.phase, link.retryAt], ['waiting', 2_445]);
    assert.equal(page.step(link, { kind: 'time' }, 2_444, 0).effect, null);
    assert.equal(page.step(link, { kind: 'time' }, 2_445, 0).effect, 'open');
  });

  test('a fault of ours is final until someone asks', () => {
    const end = run([['open', 0], [close(1008), 1], ['time', 1e9], ['online', 1e9], ['offline', 1e9]]);
    assert.deepEqual([end.link.phase, end.effect, page.deadline(end.link)], ['stopped', null, null]);
    assert.equal(page.step(end.link, { kind: 'retry' }, 2e9, 0).effect, 'open');
  });

  test('silence: stale after three ticks, dead twelve seconds later', () => {
    const live = [['open', 0], ['message', 1_000]];
    const quiet = (now) => run([...live, ['time', now]]);
    assert.equal(page.deadline(run(live).link), 1_000 + page.STALE_AFTER_MS);
    assert.equal(quiet(16_999).link.phase, 'live');
    const stale = quiet(17_000);
    assert.deepEqual([stale.link.phase, stale.effect, page.deadline(stale.link)], ['stale', null, 29_000]);
    assert.equal(page.step(stale.link, { kind: 'message' }, 20_000, 0).link.phase, 'live');
    const dead = quiet(29_000);
    assert.deepEqual([dead.link.phase, dead.effect], ['waiting', 'drop']);
  });

  test('a connection that never says a word is given up as well', () => {
    assert.equal(run([['time', page.DEAD_AFTER_MS - 1]]).effect, null);
    assert.equal(run([['time', page.DEAD_AFTER_MS]]).effect, 'drop');
  });

  test('offline pauses, online comes back at once but not in step', () => {
    const off = run([['open', 0], ['message', 0], ['offline', 10]]);
    assert.deepEqual([off.link.phase, off.effect, page.deadline(off.link)], ['offline', 'drop', null]);
    assert.equal(page.step(off.link, { kind: 'time' }, 1e6, 0).effect, null, 'no attempt while offline');
    const on = page.step(off.link, { kind: 'online' }, 1_000, 0.5).link;
    assert.deepEqual([on.phase, on.retryAt], ['waiting', 1_000 + page.ONLINE_JITTER_MS / 2]);
    const waiting = run([[close(1006), 0], ['time', 500], [close(1006), 501], ['online', 600]], 0.5);
    assert.equal(waiting.link.retryAt, 850, 'a long wait is cut short');
    assert.equal(run([['open', 0], ['message', 0], ['online', 10]]).link.phase, 'live', 'and a live one is left alone');
  });

  test('what a dropped socket still says moves nothing', () => {
    for (const input of ['open', 'message', close(1000)]) assert.equal(run([[close(1006), 0], [input, 10]]).link.phase, 'waiting');
  });
});

describe('status', () => {
  const clock = (time) => new Date(time).toISOString().slice(11, 19);
  const shown = (inputs, seen, now = 0) => page.status(run(inputs).link, seen, now, clock);

  test('words for each phase', () => {
    const fresh = picture(update(5, 5));
    const live = [['open', 0], ['message', 0]];
    assert.equal(shown([], page.emptyPicture()).shown, 'Connecting…');
    assert.deepEqual(shown(live, fresh), { phase: 'live', shown: 'Live', said: 'Live' });
    assert.deepEqual(shown(live, picture(update(5, 5, { stale: true }))), { phase: 'stale', shown: 'Stale since 10:30:05', said: 'The number is stale since 10:30:05' });
    assert.equal(shown([...live, ['time', page.STALE_AFTER_MS]], fresh).shown, 'No news since 10:30:05');
    assert.equal(shown([...live, ['offline', 1]], fresh).shown, 'Offline');
    assert.equal(shown([...live, [close(1002), 1]], fresh).phase, 'stopped');
  });

  test('the countdown is shown each second but spoken once', () => {
    const inputs = [[close(1012, '{"retry_after_ms":3000}'), 0]];
    const seconds = [0, 999, 1_000, 2_999, 3_500].map((now) => shown(inputs, page.emptyPicture(), now));
    assert.deepEqual(seconds.map((status) => status.shown.match(/\d+/)[0]), ['3', '3', '2', '1', '1']);
    assert.equal(new Set(seconds.map((status) => status.said)).size, 1);
    const again = shown([...inputs, ['time', 3_000]], page.emptyPicture());
    assert.deepEqual([again.shown, again.said], ['Reconnecting…', seconds[0].said], 'and the next attempt is no news');
  });
});

describe('source', () => {
  test('nothing from elsewhere, nothing inline, nothing parsed as HTML', async () => {
    const [html, css, js] = await Promise.all(['index.html', 'page.css', 'page.js'].map(asset));
    assert.doesNotMatch(html + css + js, /(?:https?:)?\/\/(?!www\.w3\.org\/2000\/svg)[a-z0-9-]+\.[a-z]/i, 'no foreign address');
    assert.doesNotMatch(html, /\sstyle=|\son[a-z]+=|<style|<script(?![^>]*\ssrc="\/page\.js")/i);
    assert.doesNotMatch(css, /@import|url\(/i);
    assert.doesNotMatch(js, /innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|setAttribute\('style'/);
  });

  test('each element that the script asks for by id exists', async () => {
    const [html, js] = await Promise.all(['index.html', 'page.js'].map(asset));
    const asked = [...js.matchAll(/(?:#byId|getElementById)\('([a-z-]+)'\)/g)].map((match) => match[1]);
    assert.ok(asked.length > 10);
    for (const id of asked) assert.ok(html.includes(`id="${id}"`), id);
  });
});
