"""Serves SMTP on 127.0.0.1. The first line of the output is the port. Each other
line is a message as JSON, as Python's email package reads it."""

import asyncio
import email
import email.policy
import json
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult

mode, mechanism, user, password, cert, key = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
starttls = mode == "starttls"


class Handler:
    async def handle_DATA(self, server, session, envelope):
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        defects = list(message.defects)
        for value in message.values():
            defects += value.defects
        sender = message["From"].addresses[0]
        print(json.dumps({
            "Login": session.auth_data,
            "MailFrom": envelope.mail_from,
            "RcptTos": envelope.rcpt_tos,
            "Headers": list(message.items()),
            "Sender": [sender.display_name, sender.addr_spec],
            "Date": message["Date"].datetime.timestamp(),
            "Text": message.get_content(),
            "Defects": [repr(d) for d in defects],
        }), flush=True)
        return "250 2.0.0 OK"


def authenticate(server, session, envelope, used, login):
    valid = (login.login, login.password) == (user.encode(), password.encode())
    return AuthResult(success=valid, handled=False, auth_data=f"{used} {user}")


def connection():
    return SMTP(
        Handler(),
        hostname="mail.example.com",
        tls_context=context if starttls else None,
        require_starttls=starttls,
        auth_required=True,
        auth_require_tls=starttls,  # it does not know of TLS from the first byte
        auth_exclude_mechanism={"PLAIN", "LOGIN"} - {mechanism},
        authenticator=authenticate,
    )


async def main():
    server = await asyncio.get_running_loop().create_server(
        connection, "127.0.0.1", 0, ssl=None if starttls else context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
