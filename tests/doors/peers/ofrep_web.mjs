// The web SDK with its stock provider, in node: what a page would see of the bulk evaluation.
//     node ofrep_web.mjs URL
import { OpenFeature } from '@openfeature/web-sdk';
import { OFREPWebProvider } from '@openfeature/ofrep-web-provider';

const statuses = [];
const fetchImplementation = async (...request) => {
  const response = await fetch(...request);
  statuses.push(response.status);
  return response;
};
// It asks again by itself only where it is told to; then an unchanged answer is a 304.
const baseUrl = process.argv[2];
const provider = new OFREPWebProvider({ baseUrl, fetchImplementation, pollInterval: 100 });
await OpenFeature.setContext({ targetingKey: 'a1', words: 3 });
await OpenFeature.setProviderAndWait(provider);
const flags = OpenFeature.getClient();
const seen = [];
for (const context of [undefined, { targetingKey: 'b2', words: 9 }, { routed: 'small' }]) {
  if (context !== undefined) await OpenFeature.setContext(context);
  const { value, variant, reason, errorCode, flagMetadata } = flags.getStringDetails('chat', 'none');
  seen.push({ value, variant, reason, error: errorCode ?? null, metadata: flagMetadata });
}
const { length } = statuses;
while (statuses.length < length + 2) await new Promise((resolve) => setTimeout(resolve, 20));
console.log(JSON.stringify({ statuses, seen }));
await OpenFeature.close();
