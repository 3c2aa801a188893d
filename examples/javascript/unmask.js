// A client of `unmask serve` in plain JavaScript, by docs/protocol.md:
//
//   npm install && node unmask.js in.jpg out.jpg [tcp://127.0.0.1:5555]
//
// What is painted is a plausible face, never evidence of who someone is.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { encode, decode } = require("@msgpack/msgpack");
const { Dealer } = require("zeromq");

const FORMATS = { ".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp" };
const TIMEOUT_MS = 10_000;

class Client {
  constructor(address) {
    this.socket = new Dealer({ linger: 200, receiveTimeout: TIMEOUT_MS });
    this.socket.connect(address);
    this.lastId = 0;
    this.began = performance.now();
  }

  /** Says hello, and keeps what the server says about itself. */
  async hello() {
    await this.socket.send([encode({ type: "hello", version: 1 })]);
    this.welcome = (await this.receive("welcome")).header;
  }

  /** Sends a coded picture; gives { header, picture }. `header.faces` says what was found. */
  async unmask(picture, format) {
    const id = ++this.lastId;
    const seconds = (performance.now() - this.began) / 1000;
    const frame = { type: "frame", id, session: this.welcome.session, format, bytes: picture.length, seconds };
    await this.socket.send([encode(frame), picture]);
    return this.receive("result", id);
  }

  /** Waits for a message of a type, passing over those that this client has no use for. */
  async receive(type, id) {
    for (;;) {
      const [first, picture] = await this.socket.receive();
      const header = decode(first);
      if (header.type === "error") throw new Error(`${header.code}: ${header.text}`);
      if (header.type === type && (id === undefined || header.id === id)) return { header, picture };
    }
  }

  async close() {
    await this.socket.send([encode({ type: "bye" })]);
    this.socket.close();
  }
}

async function main([input, output, address = "tcp://127.0.0.1:5555"]) {
  const format = FORMATS[path.extname(input ?? "").toLowerCase()];
  if (!format || !output) throw new Error("usage: node unmask.js IN.jpg|png|webp OUT [ADDRESS]");
  const client = new Client(address);
  await client.hello();
  const { header, picture } = await client.unmask(fs.readFileSync(input), format);
  fs.writeFileSync(output, picture);
  console.log(JSON.stringify({ width: header.width, height: header.height, faces: header.faces }));
  await client.close();
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error.code === "EAGAIN" ? `no answer within ${TIMEOUT_MS / 1000} s: is unmask serve running?` : error.message);
  process.exitCode = 1;
});
