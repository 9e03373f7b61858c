// Receives webhooks over HTTPS on 127.0.0.1, and verifies them with the library
// standardwebhooks. The first line of the output is the port. Each other line is what
// the library says of a request: the event's JSON, or the error.
'use strict';
const fs = require('fs');
const https = require('https');
const { Webhook } = require('standardwebhooks');

const [secret, cert, key] = process.argv.slice(2);
const webhook = new Webhook(secret);
const server = https.createServer({ cert: fs.readFileSync(cert), key: fs.readFileSync(key) }, (req, res) => {
	const chunks = [];
	req.on('data', (chunk) => chunks.push(chunk));
	req.on('end', () => {
		try {
			console.log(JSON.stringify(webhook.verify(Buffer.concat(chunks), req.headers)));
			res.writeHead(204).end();
		} catch (err) {
			console.log(err.message);
			res.writeHead(400).end();
		}
	});
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
