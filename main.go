/*
Userd is a user-management microservice: registration, login with JSON Web
Tokens, and create, read, update and delete of users over a JSON API, on an
embedded SQLite database.

Usage:

	userd [flags]
	userd user add [-admin] NAME EMAIL
	userd user list [-json]
	userd user show [-json] USER
	userd user set [-username NAME] [-email EMAIL] [-role ROLE] [-disabled true|false] USER
	userd user passwd USER
	userd user delete USER
	userd user import [-dry-run] [-partial] FILE
	userd user export [-ndjson]
	userd session list [-json] USER
	userd session end USER [SESSION]
	userd key list [-json]
	userd key rotate
	userd events [-follow] [-json] [-after ID] [-user USER] [-type TYPE]
	userd events verify [HEAD]
	userd backup FILE
	userd restore FILE
	userd check
	userd adopt [-resolve suffix]
	userd healthcheck
	userd help
	userd version

Without a command it serves until it is interrupted or terminated; then it
finishes the requests that run, closes the database and exits. A hangup
(SIGHUP) makes it read the files of -tls-cert and -tls-key again, and does
nothing without them.

The commands work on the database, whether a server runs on it or not; one that
does sees what they did at once. A database of the Flask tutorial is adopted first.
USER is a username, an e-mail address, or an id
as id=7. Passwords are read from the first line of standard input. Flags may
stand before or after names.

"user add" adds a user, with -admin one who may do anything to anyone; ROLE is
member or admin. "user passwd" sets a password and ends the user's sessions.
"session end" ends one session or all of a user's. "key rotate" makes a new key
sign access tokens; the one before it verifies until its last token has expired.

"events" prints what has happened, and with -follow what happens from now on, until
it is interrupted; -after begins after an event, -user and -type choose. "events
verify" recomputes the chain of events and prints its newest link, HEAD. With a HEAD
that was noted earlier, elsewhere, it finds every change up to it. It fails if events
were changed, removed or inserted, or deleted before EVENT_RETENTION was over.

"adopt" makes a database of the Flask tutorial into userd's, as the first start
does, and first writes a copy next to it. It refuses if users differ only in the
case of a name, unless -resolve suffix renames all but the oldest to NAME-ID and
LOCAL+ID@HOST.

"healthcheck" asks the server that has this address whether it is ready, for
containers without curl, and leaves the database alone.

"user export" writes every user, with the password's hash, as CSV or with
-ndjson as one JSON object a line. "user import" reads both, and the CSV of
Django's table auth_user, from FILE or, where that is -, from standard input.
The columns are username and email; password, which is hashed, or password_hash
(argon2, bcrypt, scrypt, and PBKDF2 as Werkzeug and Django write them); and, if
wanted, id, role, disabled, created_at, updated_at and last_login_at. An id must
be higher than any that this database gave out. Each bad row is reported
on a line of standard error, with its number (a CSV header is row 1); then
nothing is imported, but with -partial the good rows are, and the exit status is
still 1. -dry-run only checks.

"backup" writes a copy of the database, as it is at one moment, to FILE, which
must not be there, or to standard output, where FILE is -. "restore" puts a copy
in the place of the database, which nobody may have open, and keeps the one
before beside it; it leaves out ids that may have been given since. "check" reads
the whole database and prints what is wrong with it, a line each.

Flags, and the environment variables that they override:

	-database URL          DATABASE_URL
		The database: sqlite:///relative.db, sqlite:////absolute.db or a path;
		sqlite:///app.db if not given. Made if it does not exist. The commands
		take this flag too, and none of those below, but that events verify takes
		-event-retention; healthcheck takes only -addr, -https-domain and -tls-cert.
	-addr HOST:PORT        ADDR
		The address to listen on, 127.0.0.1:5000 if not given, and with
		-https-domain :443. Where ADDR is not set, PORT in the environment sets
		only the port.
	-metrics-addr HOST:PORT  METRICS_ADDR
		Another address, such as 127.0.0.1:9090, on which /metrics, /healthz and
		/readyz are answered to whoever asks, and nothing else: strangers must not
		reach it. None if not given; then /metrics needs an admin's token.
	-https-domain NAME,...  HTTPS_DOMAIN
		Serve HTTPS with certificates for these names, which userd gets and
		renews by ACME; none if not given. Port 80 on the same host redirects. To
		set it is to accept the terms of the certificate authority.
	-acme-directory URL    ACME_DIRECTORY
		The ACME server, https://acme-v02.api.letsencrypt.org/directory (Let's
		Encrypt) if not given.
	-tls-cert FILE         TLS_CERT
		Serve HTTPS with this certificate, followed by those between it and the
		root, in PEM; none if not given. It is read again when it changes.
	-tls-key FILE          TLS_KEY
		The key of that certificate, likewise; none if not given.
	-access-ttl TIME       JWT_ACCESS_TOKEN_EXPIRES
		How long an access token is good: a duration such as 15m (which it is
		if not given), or seconds.
	-refresh-ttl TIME      JWT_REFRESH_TOKEN_EXPIRES
		How long a session lasts after its last refresh, likewise; 720h if not
		given.
	-registration WHO      REGISTRATION
		open: anyone makes a user (if not given); closed: only an admin does.
	-directory WHAT        DIRECTORY
		What a member sees of others: full (id, username, email), names (id,
		username; if not given) or self (nothing).
	-trusted-proxies CIDR,...  TRUSTED_PROXIES
		The proxies whose X-Forwarded-For is believed; none if not given.
	-cors-origins ORIGIN,...  CORS_ORIGINS
		The origins, such as https://app.example.com, whose pages may call the
		API from a browser; none if not given.
	-rate-limit WHETHER    RATE_LIMIT
		on (if not given): failed logins, and what one network asks for in all,
		are limited; off: they are not, for load tests.
	-event-retention TIME  EVENT_RETENTION
		How long events are kept, a duration or seconds: 9600h (400 days) if not
		given; 0 is for ever. "events verify" needs the server's value.
	-log-format FORMAT     LOG_FORMAT
		text or json; if not given, text on a terminal and else json.
	-log-level LEVEL       LOG_LEVEL
		debug, info (if not given), warn or error. The log goes to standard error.

The environment alone holds the keys that sign access tokens:

	JWT_SECRET_KEY
		At least 32 bytes. If not set, userd makes a random key at its first
		start and keeps it in the database.
	JWT_SECRET_KEY_FILE
		A file that holds the key instead.
	JWT_SECRET_KEY_PREVIOUS
		The key before this one: tokens that it signed are still good.

A socket that systemd hands over (LISTEN_PID, LISTEN_FDS) is taken instead of
-addr, and systemd is told when userd serves and stops (NOTIFY_SOCKET).

The exit status is 0 when all is done, 1 when it failed, and 2 when the command
or the configuration is wrong.
*/
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "userd:", err)
		os.Exit(exitStatus(err))
	}
}

func exitStatus(err error) int {
	var usage *usageError
	if errors.As(err, &usage) {
		return 2
	}
	return 1
}

// run is the program.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) == 1 {
		switch args[0] {
		case "help":
			_, err := io.WriteString(stdout, manual())
			return err
		case "version":
			_, err := fmt.Fprintln(stdout, "userd", version())
			return err
		}
	}
	cmd, args, err := findCommand(args)
	if err != nil {
		return err
	}
	c := &cli{stdin: stdin, stdout: stdout, stderr: stderr}
	err = c.configure(cmd, args, getenv)
	if errors.Is(err, flag.ErrHelp) {
		_, err := io.WriteString(stdout, manual())
		return err
	}
	if err != nil {
		return err
	}
	if cmd != nil {
		return cmd.run(ctx, c)
	}
	return serve(ctx, c.config, stderr)
}

//go:embed main.go
var source string

// manual returns the comment at the top of this file, so that there is one.
func manual() string {
	_, text, _ := strings.Cut(source, "/*\n")
	text, _, _ = strings.Cut(text, "*/")
	return text
}
