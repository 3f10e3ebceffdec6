// What our provider's Outcomes join events to, and what becomes of what the daemon refuses.
//     node ofrep_events.mjs
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { Outcomes } from './openfeature.mjs';

const DECISION = { request_id: 'r1', decision_id: 'd7', unit: 'u1', outcome_token: 'secret' };
const options = {
  baseUrl: 'http://127.0.0.1:9/', headers: async () => ({}), outcome: 'outcome', exposure: 'exposure',
  buffer: 3, remembered: 2,
};
const outcomes = new Outcomes(options);
const sent = [];
outcomes.send = (body) => sent.push(body);
outcomes.remember(DECISION);
outcomes.remember({ request_id: 'passed', unit: 'u1', reason: 'kill-switch' });
const context = { targetingKey: 'u1', request_id: 'r1' };
for (const [counted, event, where, details] of [
  ['ignored', 'page-seen', context, { value: 1 }],
  ['no-decision', 'outcome', {}, { value: 1 }],
  ['no-decision', 'outcome', { request_id: 7 }, { value: 1 }],
  ['no-decision', 'outcome', {}, { value: 1, decision_id: 'd8' }],
  ['other-decision', 'outcome', context, { value: 1, decision_id: 'd8' }],
  ['not-logged', 'outcome', { request_id: 'passed' }, { value: 1 }],
  ['other-unit', 'outcome', { ...context, targetingKey: 'u2' }, { value: 1 }],
  ['other-unit', 'outcome', context, { value: 1, unit: 'u2' }],
  ['no-part', 'outcome', context, { page: '/a' }],
  ['sent', 'outcome', context, { value: 1, page: '/a', outputs: { seconds: 2 } }],
  ['sent', 'outcome', {}, { value: 0, ...DECISION }],
]) {
  assert.equal(outcomes.track(event, where, details), counted, JSON.stringify([event, where, details]));
}
const named = { request_id: 'r1', unit_id: 'u1', outcome_token: 'secret' };
assert.deepEqual(sent, [{ ...named, reward: 1, outputs: { seconds: 2 } }, { ...named, reward: 0 }]);
outcomes.remember({ request_id: 'r3', decision_id: 'd9' });
assert.equal(outcomes.track('outcome', {}, { value: 1, decision_id: 'd7' }), 'no-decision'); // forgotten

// A daemon that is busy first, and then refuses the body, of which one row is at fault.
const bodies = [];
const server = createServer(async (request, response) => {
  let text = '';
  for await (const part of request) text += part;
  const rows = JSON.parse(text);
  bodies.push(rows.map((row) => row.request_id));
  const bad = rows.some((row) => row.reward === 'bad');
  response.writeHead(bodies.length === 1 ? 503 : bad ? 422 : 200);
  response.end(JSON.stringify({ rejected: [] }));
});
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const delivering = new Outcomes({ ...options, baseUrl: `http://127.0.0.1:${server.address().port}` });
for (const [name, reward] of [['a', 0], ['b', 1], ['c', 'bad'], ['d', 1]]) {
  delivering.send({ request_id: name, reward });
}
assert.ok(await delivering.flush(20_000));
assert.deepEqual(bodies, [['b', 'c', 'd'], ['b', 'c', 'd'], ['b'], ['c'], ['d']]);
const { delivered, refused, dropped, retries } = delivering;
assert.deepEqual({ delivered, refused, dropped, retries }, { delivered: 2, refused: 1, dropped: 1, retries: 3 });
server.close();
server.closeAllConnections();
console.log('ok');
