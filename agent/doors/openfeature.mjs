/**
 * A provider for the OpenFeature server SDK in JavaScript: evaluations by OFREP, outcomes by `track`.
 *
 *     import { OpenFeature } from '@openfeature/server-sdk';
 *     import { EquipoiseProvider } from './openfeature.mjs';
 *
 *     await OpenFeature.setProviderAndWait(new EquipoiseProvider({ baseUrl: 'http://127.0.0.1:8080' }));
 *     const flags = OpenFeature.getClient();
 *     const context = { targetingKey: 'user-7', request_id: 'r1', routed: 'large', words: 12 };
 *     const model = await flags.getStringValue('chat', 'large', context);
 *     ...
 *     flags.track('exposure', context); // the user saw the answer
 *     flags.track('outcome', context, { value: 1, outputs: { seconds: 0.4 } });
 *
 * One file to copy, for Node 20 and later; it needs @openfeature/server-sdk and
 * @openfeature/ofrep-provider. The stock provider evaluates just as well, but it has no time-out of
 * its own, and OFREP has no call for outcomes. This one remembers what was decided, so an event
 * finds its decision by the `request_id` of the context, and refuses an event whose `targetingKey`
 * is not the unit that the decision was made for. What it sends waits in a bounded buffer until the
 * daemon answers: neither an evaluation nor `track` throws or waits longer because of the daemon.
 */
import { OFREPProvider } from '@openfeature/ofrep-provider';

const PARTS = [
  'served', 'attempt', 'attempts', 'delivered', 'outputs', 'reward', 'metrics',
];
const AT_ONCE = 100; // outcomes in one request of the delivery
const DELIVERY_MS = 2000; // time-out of the delivery, for which nobody waits
const AGAIN = new Set([401, 403, 408, 429]); // of a whole request; what it carries may still be taken

/**
 * Decisions by their requests, and what is reported of them.
 *
 * counters: events `sent`, `ignored` for those of other names, and what was refused, by reason:
 * `no-decision`, it names none; `other-decision`, it names two; `other-unit`, it is another's;
 * `not-logged`, the request was passed through; `no-part`, it says nothing. delivered: outcomes the
 * daemon took; refused: what it does not take; dropped: lost because the buffer was full; retries:
 * deliveries tried again.
 */
export class Outcomes {
  constructor({ baseUrl, headers, outcome, exposure, buffer, remembered }) {
    Object.assign(this, { baseUrl: baseUrl.replace(/\/+$/, ''), headers, buffer, remembered });
    this.events = new Map([[outcome, {}], [exposure, { delivered: true }]]);
    this.counters = {};
    this.delivered = this.refused = this.dropped = this.retries = 0;
    this.decisions = new Map();
    this.requests = new Map();
    this.waiting = [];
    this.delivery = null;
    this.closed = false;
  }

  /** Keep what an evaluation said of its decision. */
  remember(metadata) {
    if (typeof metadata?.request_id !== 'string') return;
    this.decisions.delete(metadata.request_id);
    this.decisions.set(metadata.request_id, metadata);
    if (metadata.decision_id) this.requests.set(metadata.decision_id, metadata.request_id);
    if (this.decisions.size > this.remembered) {
      const [name, oldest] = this.decisions.entries().next().value;
      this.decisions.delete(name);
      this.requests.delete(oldest.decision_id);
    }
  }

  /** Report an event; what it is counted as. Never throws. */
  track(event, context, details) {
    let counted;
    try {
      counted = this.report(event, context ?? {}, details ?? {});
    } catch (error) {
      counted = `refused: ${error}`.slice(0, 40);
    }
    this.counters[counted] = (this.counters[counted] ?? 0) + 1;
    return counted;
  }

  report(event, context, { value, ...attributes }) {
    const parts = this.events.get(event);
    if (parts === undefined) return 'ignored';
    const { decision_id: decisionId } = attributes;
    const name = attributes.request_id ?? this.requests.get(decisionId) ?? context.request_id;
    if (typeof name !== 'string') return 'no-decision';
    const known = this.decisions.get(name);
    if (known && known.decision_id === undefined) return 'not-logged';
    if (known && decisionId !== undefined && known.decision_id !== decisionId) return 'other-decision';
    const units = new Set([known?.unit, attributes.unit, context.targetingKey].filter(Boolean));
    if (units.size > 1) return 'other-unit';
    const body = { ...parts };
    if (typeof value === 'number') body.reward = value;
    for (const part of PARTS) if (part in attributes) body[part] = attributes[part];
    if (Object.keys(body).length === 0) return 'no-part';
    const [unit] = units;
    const token = attributes.outcome_token ?? known?.outcome_token;
    this.send({ request_id: name, ...body, unit_id: unit, outcome_token: token });
    return 'sent';
  }

  /** Put an outcome into the buffer. ask: by what request its outcome token can be had again. */
  send(body, ask) {
    this.waiting.push({ body: structuredClone(body), ask }); // it may be changed after we return
    if (this.waiting.length > this.buffer) {
      this.waiting.shift();
      this.dropped += 1;
    }
    this.delivery ??= this.deliver().finally(() => (this.delivery = null));
  }

  /** Wait until everything is delivered; whether it was, within so many milliseconds. */
  async flush(milliseconds = 5000) {
    const end = Date.now() + milliseconds;
    while (this.delivery !== null && Date.now() < end) await this.pause(10);
    return this.delivery === null;
  }

  async deliver() {
    await null; // what is tracked in one turn goes together
    for (let wait = 20; this.waiting.length > 0 && !this.closed; ) {
      const batch = this.waiting.splice(0, AT_ONCE);
      if (await this.post(batch)) {
        wait = 20;
        continue;
      }
      this.retries += batch.length;
      this.waiting.unshift(...batch);
      this.dropped += Math.max(0, this.waiting.length - this.buffer);
      this.waiting.splice(0, this.waiting.length - this.buffer);
      await this.pause(wait);
      wait = Math.min(1000, 2 * wait);
    }
  }

  /** Whether the daemon answered; what it refuses for good is counted. */
  async post(batch) {
    const [status, answer] = await this.ask('/v1/outcomes', batch.map(({ body }) => body));
    if (status === 0) return false;
    if (status !== 200 && batch.length > 1) {
      // One of them is unreadable, the others are not.
      for (const [at, each] of batch.entries()) {
        if (!(await this.post([each]))) {
          this.waiting.unshift(...batch.slice(at + 1));
          return this.post([each]);
        }
      }
      return true;
    }
    const rejected = status === 200 ? answer.rejected : [{ index: 0, status }];
    this.delivered += batch.length - rejected.length;
    for (const { index, status: each } of rejected) {
      const item = batch[index];
      if (item.ask === undefined) this.refused += 1;
      else if (each === 403) await this.findToken(item);
    }
    return true;
  }

  /** Send an outcome again with the token of a decision whose answer never came. */
  async findToken({ body, ask }) {
    const { flagKey, context } = ask;
    const path = `/ofrep/v1/evaluate/flags/${flagKey}`;
    const [status, answer] = await this.ask(path, { context: { ...context, again: true } });
    if (status === 0) {
      await this.pause(1000);
      this.waiting.push({ body, ask });
    } else if (status === 200) {
      this.waiting.push({ body: { ...body, outcome_token: answer.metadata.outcome_token } });
    }
  }

  /** Status and answer; status 0 where the same is to be sent again later. */
  async ask(path, body) {
    try {
      const response = await fetch(this.baseUrl + path, {
        method: 'POST',
        headers: { ...(await this.headers()), 'Content-Type': 'application/json' },
        body: JSON.stringify(body),
        signal: AbortSignal.timeout(DELIVERY_MS),
      });
      const { status } = response;
      return AGAIN.has(status) || status >= 500 ? [0] : [status, await response.json()];
    } catch {
      return [0];
    }
  }

  pause(milliseconds) {
    return new Promise((resolve) => setTimeout(resolve, milliseconds));
  }
}

/**
 * baseUrl: of the daemon. token: of scope `route`, where it asks for one. timeoutMs: what an
 * evaluation may take. outcome, exposure: names of the events that are reported; all others are
 * ignored. buffer: outcomes kept while the daemon is away, the oldest are dropped. remembered: the
 * newest decisions that an event can find by its request_id alone. headers, headersFactory,
 * fetchImplementation: as of OFREPProvider.
 */
export class EquipoiseProvider extends OFREPProvider {
  constructor({
    token,
    timeoutMs = 250,
    outcome = 'outcome',
    exposure = 'exposure',
    buffer = 10_000,
    remembered = 100_000,
    fetchImplementation = fetch,
    headers = {},
    headersFactory = () => ({}),
    ...options
  }) {
    const all = async () => ({
      ...(token === undefined ? {} : { Authorization: `Bearer ${token}` }),
      ...Object.fromEntries(Array.isArray(headers) ? headers : Object.entries(headers)),
      ...Object.fromEntries(new Headers(await headersFactory())),
    });
    super({
      ...options,
      headersFactory: all,
      fetchImplementation: (request) =>
        fetchImplementation(request, { signal: AbortSignal.timeout(timeoutMs) }),
    });
    this.metadata = { name: 'Equipoise' };
    const { baseUrl } = options;
    this.outcomes = new Outcomes({ baseUrl, headers: all, outcome, exposure, buffer, remembered });
  }

  async evaluate(flagKey, defaultValue, context) {
    // With a name of its own, what came too late can be told from what never came.
    const named = { ...context, request_id: context.request_id ?? `openfeature-${crypto.randomUUID()}` };
    try {
      const details = await super.evaluate(flagKey, defaultValue, named);
      this.outcomes.remember(details.flagMetadata);
      return details;
    } catch (error) {
      if (perhapsDecided(error) && typeof defaultValue === 'string') {
        const { request_id: name } = named;
        const lost = { request_id: name, served: defaultValue, delivered: false };
        this.outcomes.send(lost, { flagKey, context: named });
      }
      throw error;
    }
  }

  /** Report an outcome or an exposure; returns at once and never throws. */
  track(name, context, details) {
    this.outcomes.track(name, context, details);
  }

  /** Deliver what is left, for a second at the most. */
  async onClose() {
    await this.outcomes.flush(1000);
    this.outcomes.closed = true;
  }
}

/** Whether the daemon may have logged a decision that nobody got. */
function perhapsDecided(error) {
  if (error.name === 'OFREPApiFetchError' || error.code === 'TYPE_MISMATCH') return true;
  const status = error.response?.status ?? 0;
  return status === 200 || status >= 500;
}
