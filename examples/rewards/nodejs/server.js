// A reward service in Node.js, written from reward.proto alone.
//
//     npm ci
//     node server.js [PORT]
//     trireme reward check 127.0.0.1:50051 --reference '{"keywords": ["answer"]}'
//
// It knows nothing of how `reward.js` scores. What it was asked is answered in full or refused with a status; after
// SIGTERM or SIGINT nothing new is accepted, and calls under way have DRAIN_MS to end.

import path from 'node:path';
import process from 'node:process';

import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';
import { ReflectionService } from '@grpc/reflection';
import { HealthImplementation } from 'grpc-health-check';

import { InvalidSample, description, score } from './reward.js';

const PROTOS = path.resolve(import.meta.dirname, '../../../services/protos');
const SERVICE = 'trireme.reward.v1.RewardService';
const MAX_REQUEST_BYTES = 16 * 2 ** 20;
const DRAIN_MS = 10_000;
const LINGER_MS = 250;

let callsUnderWay = 0;
let draining = false;

function main(port) {
  const definition = protoLoader.loadSync('reward/v1/reward.proto', {
    includeDirs: [PROTOS],
    enums: String,
    longs: String,
    defaults: true,
    oneofs: true,
  });
  const health = new HealthImplementation({ '': 'SERVING', [SERVICE]: 'SERVING' });
  const server = new grpc.Server({ 'grpc.max_receive_message_length': MAX_REQUEST_BYTES });
  server.addService(definition[SERVICE], { describe, score: answer });
  health.addToServer(server);
  new ReflectionService(definition).addToServer(server);
  server.bindAsync(`127.0.0.1:${port}`, grpc.ServerCredentials.createInsecure(), (error, bound) => {
    if (error) {
      console.error(`cannot listen on 127.0.0.1:${port}: ${error.message}`);
      process.exit(2);
    }
    console.log(`reward server listening on 127.0.0.1:${bound}`);
  });
  for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, () => drain(server, health));
}

function describe(call, reply) {
  reply(null, { ...description, maxRequestBytes: MAX_REQUEST_BYTES });
}

// Answers one Score call: one result for each sample, with its id.
async function answer(call, reply) {
  const { requestId, samples } = call.request;
  const refusal = whyRefused(samples);
  if (refusal) return reply(refusal);
  callsUnderWay += 1;
  try {
    return reply(null, { requestId, results: await Promise.all(samples.map(result)) });
  } finally {
    callsUnderWay -= 1;
  }
}

function whyRefused(samples) {
  if (draining) {
    return { code: grpc.status.UNAVAILABLE, details: 'this server is shutting down; use another' };
  }
  if (samples.length > description.maxBatchSamples) {
    const details = `${samples.length} samples in one call; this server takes at most ${description.maxBatchSamples}`;
    return { code: grpc.status.INVALID_ARGUMENT, details };
  }
  if (new Set(samples.map((sample) => sample.id)).size < samples.length) {
    return { code: grpc.status.INVALID_ARGUMENT, details: 'a sample id is given more than once' };
  }
  return null;
}

// The reward of a sample, or why there is none: a failure is never sent as a number.
async function result(sample) {
  try {
    const reward = await score({ ...sample, reference: fromStruct(sample.reference) });
    return { sampleId: sample.id, reward };
  } catch (error) {
    const code = error instanceof InvalidSample ? 'FAILURE_CODE_INVALID_SAMPLE' : 'FAILURE_CODE_INTERNAL';
    return { sampleId: sample.id, failure: { code, message: String(error.message), retryable: false } };
  }
}

// google.protobuf.Struct as plain JSON.
function fromStruct(struct) {
  return Object.fromEntries(Object.entries(struct?.fields ?? {}).map(([key, value]) => [key, fromValue(value)]));
}

function fromValue(value) {
  if (value.kind === 'structValue') return fromStruct(value.structValue);
  if (value.kind === 'listValue') return value.listValue.values.map(fromValue);
  return value.kind === 'nullValue' ? null : value[value.kind];
}

// Says that it ends, waits for the calls under way, and ends. What has arrived by then and waits for its turn on the one
// thread is still taken: new calls are refused a little later.
function drain(server, health) {
  for (const service of ['', SERVICE]) health.setStatus(service, 'NOT_SERVING');
  setTimeout(() => refuseAndEnd(server), LINGER_MS);
}

function refuseAndEnd(server) {
  draining = true;
  const deadline = Date.now() + DRAIN_MS;
  const waiting = setInterval(() => {
    if (callsUnderWay > 0 && Date.now() < deadline) return;
    clearInterval(waiting);
    server.tryShutdown(() => process.exit(0));
    setTimeout(() => process.exit(0), 1000).unref(); // Whoever only watches our health need not be waited for.
  }, 10);
}

main(process.argv[2] ?? 50051);
