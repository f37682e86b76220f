// Reads a stream over HTTP and from Kafka, by schemas/README.md and docs/http-api.md alone.
//
//   npm install && npx esbuild features.ts --outfile=features.mjs
//   node features.mjs http://127.0.0.1:9999 localhost:9092 demo-train layer3 6
import { decode } from "@msgpack/msgpack";
import { xxhash3 } from "hash-wasm";
import { Kafka, logLevel } from "kafkajs";

type Header = { batch: number; pass: number; rows: number; dtype: string; must_understand?: string[] };

function numbers(dtype: string, payload: Uint8Array, count: number): number[] {
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  const float = (bits: number) => new DataView(new Uint32Array([bits]).buffer).getFloat32(0, true);
  const half = (bits: number) => {
    const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
    const value = exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25);
    return bits >> 15 ? -value : value;
  };
  const kinds: Record<string, [number, (at: number) => number]> = {
    float32: [4, (at) => view.getFloat32(at, true)],
    bfloat16: [2, (at) => float(view.getUint16(at, true) << 16)],
    float16: [2, (at) => half(view.getUint16(at, true))],
    int64: [8, (at) => Number(view.getBigInt64(at, true))],
    uint8: [1, (at) => view.getUint8(at)],
  };
  const [width, read] = kinds[dtype];
  return Array.from({ length: Math.min(count, payload.length / width) }, (_, place) => read(place * width));
}

/** Checks a record's value, [format, checksum, header, payload], and prints what it holds. */
async function show(from: string, value: Uint8Array): Promise<void> {
  const parts = decode(value, { useBigInt64: true }) as [number, bigint, Uint8Array, Uint8Array];
  const [format, checksum, packed, payload] = parts;
  if (Number(format) !== 1) throw new Error(`not a record of format 1: ${format}`);
  const found = await xxhash3(Buffer.concat([packed, payload]));
  if (BigInt(`0x${found}`) !== BigInt(checksum)) throw new Error("a damaged record: its checksum is another");
  const header = decode(packed) as Header;
  if (header.must_understand?.length) throw new Error(`a later version is needed for ${header.must_understand}`);
  const first = numbers(header.dtype, payload, 3).join(" ");
  console.log(`${from} batch ${header.batch} pass ${header.pass} rows ${header.rows}: ${first}`);
}

async function overHttp(address: string, stream: string, tap: string, batches: number): Promise<void> {
  let query: string | null = `from=batch:0&until=batch:${batches}&taps=${tap}`;
  while (query !== null) {
    const answer: Response = await fetch(`${address}/v1/streams/${stream}/records?format=msgpack&${query}`);
    if (!answer.ok) throw new Error(await answer.text()); // a problem that says what to do
    const entries = decode(new Uint8Array(await answer.arrayBuffer())) as [number, Uint8Array][];
    for (const [, value] of entries) await show("http", value);
    const more = answer.headers.get("Featurestream-More") === "now";
    query = more ? `cursor=${answer.headers.get("Featurestream-Next")}` : null;
  }
}

type Take = (partition: number, key: string, value: Uint8Array, batch: number) => boolean;

/** Gives the records of a topic to a function, until that is content. The group only has to be of nobody else. */
async function each(kafka: Kafka, topic: string, content: Take): Promise<void> {
  const consumer = kafka.consumer({ groupId: `features-${topic}-${Date.now()}` });
  await consumer.connect();
  await consumer.subscribe({ topic, fromBeginning: true });
  await new Promise<void>((done, failed) => {
    const take = async ({ partition, message }: any) => {
      try {
        if (content(partition, String(message.key), message.value, Number(message.headers?.batch))) done();
      } catch (error) {
        failed(error);
      }
    };
    void consumer.run({ autoCommit: false, eachMessage: take });
  }).finally(() => consumer.disconnect());
}

async function fromKafka(brokers: string, stream: string, tap: string, batches: number): Promise<void> {
  const kafka = new Kafka({ clientId: "features", brokers: brokers.split(","), logLevel: logLevel.ERROR });
  let lanes = 0;
  await each(kafka, `${stream}.manifest`, (_, key, value) => {
    if (key === "manifest") lanes = JSON.parse(Buffer.from(value).toString()).lanes;
    return lanes > 0;
  });
  const due = Array.from({ length: lanes }, (_, lane) => lane); // the next batch of each lane
  const held = new Map<number, Uint8Array>(); // one lane may be ahead of another
  await each(kafka, `${stream}.${tap}`, (lane, _, value, batch) => {
    if (batch > due[lane]) throw new Error(`batch ${due[lane]} is missing`);
    if (batch < due[lane]) return false; // a duplicate
    due[lane] += lanes;
    if (batch < batches) held.set(batch, value);
    return held.size === batches;
  });
  for (let batch = 0; batch < batches; batch += 1) await show("kafka", held.get(batch)!);
}

const [address, brokers, stream, tap, batches] = process.argv.slice(2);
await overHttp(address, stream, tap, Number(batches));
await fromKafka(brokers, stream, tap, Number(batches));
