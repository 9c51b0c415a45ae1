// Sends what one JSON line on standard input says by nodemailer; exit code 0 where all was taken.
"use strict";

const fs = require("fs");

const order = JSON.parse(fs.readFileSync(0, "utf8"));
const nodemailer = require(order.module);

async function main() {
  const transport = nodemailer.createTransport({
    host: order.host,
    port: order.port,
    name: "client.test",
    secure: order.tls === "implicit",
    requireTLS: order.tls === "starttls",
    ignoreTLS: order.tls === "",
    tls: { ca: fs.readFileSync(order.authority) },
    auth: order.user ? { user: order.user, pass: order.password } : undefined,
    authMethod: order.auth || undefined,
    pool: order.files.length > 1,
    maxConnections: 1,
  });
  try {
    for (const file of order.files) {
      const found = await transport.sendMail({
        envelope: {
          from: order.sender,
          to: order.recipients,
          use8BitMime: order.eightbit,
          dsn: order.dsn || undefined,
        },
        raw: fs.readFileSync(file),
      });
      if (found.rejected.length) throw new Error("rejected: " + found.rejected);
    }
  } finally {
    transport.close();
  }
}

main().catch((error) => {
  console.log(String(error));
  process.exitCode = 1;
});
