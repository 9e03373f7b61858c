"""A service that verifies the access tokens of userd itself, without a request to userd for
each token. It follows the event feed, so that it refuses the tokens of a session that has
ended before they expire. It requires PyJWT (python3-jwt in Debian)."""

import email.utils
import http.server
import json
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from datetime import datetime

import jwt

SECRET = os.environ["JWT_SECRET_KEY"]
ISSUER = os.environ["JWT_ENCODE_ISSUER"]
AUDIENCE = os.environ["JWT_ENCODE_AUDIENCE"]
USERD = os.environ["USERD_URL"]
KEY = os.environ["USERD_KEY"]  # an API key with the scope admin
LIFETIME = 24 * 60 * 60  # the longest of an access token, in seconds


class Refused(Exception):
    pass


class Unavailable(Exception):
    pass


class Feed:
    """What the event feed has said about ended sessions."""

    def __init__(self):
        self.lock = threading.Lock()
        self.connected = False
        self.since = 0  # when the feed began, by the clock of userd
        self.last = ""  # the id of the last event
        self.sessions = {}  # that have ended, with the time
        self.users = {}  # whose sessions have all ended, with the time

    def follow(self):
        while True:
            try:
                self.read()
                reason = "userd closed it"
            except (OSError, ValueError) as error:
                reason = error
            with self.lock:
                self.connected = False
            print("the event feed ended:", reason, flush=True)
            time.sleep(1)

    def read(self):
        headers = {"Authorization": "Bearer " + KEY, "Accept": "text/event-stream"}
        if self.last:
            headers["Last-Event-ID"] = self.last
        request = urllib.request.Request(USERD + "/api/events", headers=headers)
        # userd sends something at least every 15 seconds.
        with urllib.request.urlopen(request, timeout=30) as answer:
            began = int(email.utils.parsedate_to_datetime(answer.headers["Date"]).timestamp())
            last, data = "", ""
            for line in answer:
                field, _, value = line.decode().rstrip("\n").partition(": ")
                if field == "id":
                    last = value
                elif field == "data":
                    data = value
                elif field == "":  # the end of an event, or a comment
                    self.record(last, json.loads(data or "{}"), began)
                    data = ""

    def record(self, last, event, began):
        with self.lock:
            if not self.last:
                self.since = began
            self.connected, self.last = True, last
            if not event:  # the id says only where the feed is
                return
            at = int(datetime.fromisoformat(event["at"].replace("Z", "+00:00")).timestamp())
            kind, changes = event["type"], event.get("changes", [])
            if kind in ("session_ended", "token_reused"):
                self.sessions[str(event["session_id"])] = at
            elif kind in ("sessions_ended", "user_deleted", "password_reset", "email_restored", "factor_added") or (
                kind == "user_changed" and ("password" in changes or "disabled=true" in changes)
            ):
                self.users[str(event["user_id"])] = at
            for ended in (self.sessions, self.users):
                for key in [key for key, then in ended.items() if then < at - LIFETIME]:
                    del ended[key]

    def verify(self, token):
        """Returns the claims of a valid access token, or raises Refused or Unavailable."""
        try:
            claims = jwt.decode(
                token,
                SECRET,
                algorithms=["HS256"],
                issuer=ISSUER,
                audience=AUDIENCE,
                leeway=0,
                # PyJWT allows no iat in the future; the clocks may differ by a minute.
                options={"require": ["exp", "iat", "iss", "aud", "sub"], "verify_iat": False, "verify_nbf": False},
            )
        except jwt.InvalidTokenError as error:
            raise Refused(str(error)) from error
        if claims.get("type") != "access" or "sid" not in claims or claims["iat"] > time.time() + 60:
            raise Refused("this is not an access token")
        with self.lock:
            ended = claims["sid"] in self.sessions or claims["iat"] <= self.users.get(claims["sub"], 0)
            known = self.connected and claims["iat"] > self.since
        if ended:
            raise Refused("the session has ended")
        if not known:  # the feed does not say what was before it began
            introspect(token)
        return claims


def introspect(token):
    """Asks userd whether a token is valid."""
    request = urllib.request.Request(
        USERD + "/api/introspect",
        data=urllib.parse.urlencode({"token": token}).encode(),
        headers={"Authorization": "Bearer " + KEY},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            active = json.load(answer)["active"]
    except (OSError, ValueError) as error:
        raise Unavailable(str(error)) from error
    if not active:
        raise Refused("the token is not valid")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            self.answer(200, "user " + feed.verify(token)["sub"])
        except Refused as error:
            self.answer(401, str(error))
        except Unavailable as error:
            self.answer(503, str(error))

    def answer(self, status, text):
        body = (text + "\n").encode()
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


feed = Feed()
threading.Thread(target=feed.follow, daemon=True).start()
host, _, port = os.environ["ADDR"].rpartition(":")
http.server.ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
