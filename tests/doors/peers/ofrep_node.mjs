// Runs where the OpenFeature SDKs are installed: evaluates a plan of requests, writes what it got.
//     node ofrep_node.mjs PLAN OUT URL stock|ours|ours-unheard SECONDS [TOKEN]
import { readFileSync, writeFileSync } from 'node:fs';
import { OpenFeature } from '@openfeature/server-sdk';
import { OFREPProvider } from '@openfeature/ofrep-provider';

const [plan, out, baseUrl, kind, limit, token] = process.argv.slice(2);
const requests = readFileSync(plan, 'utf8').trim().split('\n').map((line) => JSON.parse(line));
const timeoutMs = 1000 * Number(limit);
let provider;
if (kind !== 'stock') {
  const { EquipoiseProvider } = await import('./openfeature.mjs');
  provider = new EquipoiseProvider({ baseUrl, token, timeoutMs });
} else {
  const headers = token === undefined ? [] : [['Authorization', `Bearer ${token}`]];
  const fetchImplementation = (request) =>
    fetch(request, { signal: AbortSignal.timeout(timeoutMs) }); // it has no time-out of its own
  provider = new OFREPProvider({ baseUrl, headers, fetchImplementation });
}
await OpenFeature.setProviderAndWait(provider);
const flags = OpenFeature.getClient();
const lines = [];
for (const { request_id, unit, words, routed, rewards, seconds } of requests) {
  const context = { targetingKey: unit, request_id, routed, words, plan: 'free' };
  const started = performance.now();
  const details = await flags.getStringDetails('chat', 'large', context);
  const took = (performance.now() - started) / 1000;
  if (kind !== 'stock') {
    flags.track('exposure', context, { outputs: { seconds: seconds[details.value] } });
    flags.track('outcome', context, { value: rewards[details.value] });
    flags.track('page-seen', context);
    flags.track('outcome', { ...context, targetingKey: 'somebody-else' }, { value: 0 });
  }
  const { value, variant, reason, errorCode, errorMessage, flagMetadata: metadata } = details;
  const error = errorCode ? `${errorCode}: ${errorMessage}` : null;
  lines.push(JSON.stringify({ request_id, value, variant, reason, error, metadata, seconds: took }));
}
writeFileSync(out, `${lines.join('\n')}\n`);
if (kind === 'ours') {
  const { outcomes } = provider;
  if (!(await outcomes.flush(30_000))) throw new Error('not delivered');
  const { counters: events, delivered, refused } = outcomes;
  console.log(JSON.stringify({ events, delivered, refused }));
}
process.exit();
