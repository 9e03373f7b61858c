// Userd is a user-management microservice: registration, login with JSON Web
// Tokens, and create, read, update and delete of users over a JSON API, on an
// embedded SQLite database.
//
// "userd help -all" prints its manual, which is made from the command table
// below and the settings in config.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	neturl "net/url"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"userd/internal/cmdline"
	"userd/internal/healthcheck"
	"userd/internal/safefile"
	"userd/internal/terminal"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr); err != nil {
		if e, ok := errors.AsType[*exec.ExitError](err); !ok || !e.Exited() && !brokenPipe(e) { // otherwise runAs's process has printed why
			fmt.Fprintln(os.Stderr, "userd:", err)
		}
		os.Exit(exitStatus(err))
	}
}

// brokenPipe reports whether a process ended because the reader of its output has exited.
func brokenPipe(e *exec.ExitError) bool {
	status, ok := e.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGPIPE
}

// exitStatus returns the status of the process, as a shell would report it, if a command
// ran as another user; 2 for a wrong command or configuration; and otherwise 1.
func exitStatus(err error) int {
	if e, ok := errors.AsType[*exec.ExitError](err); ok && e.Exited() {
		return e.ExitCode()
	} else if ok && brokenPipe(e) {
		return 128 + int(syscall.SIGPIPE)
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return 2
	}
	return 1
}

// run is the program: it serves until ctx ends, or runs one command.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	c := &cli{stdin: stdin, stdout: stdout, stderr: stderr}
	cmd, act, err := c.parse(args, getenv)
	if err == nil && cmd.Words == "" {
		return serve(ctx, c.config, stderr)
	}
	if err == nil {
		err = c.runCommand(ctx, cmd, act)
	}
	if help, ok := errors.AsType[*cmdline.HelpRequest](err); ok {
		return printHelp(stdout, help)
	}
	return err
}

// table returns the command table with the flags of the settings.
func table() *cmdline.Table[action] {
	t := &cmdline.Table[action]{Program: "userd", Accepts: acceptsSetting}
	for _, c := range commands {
		t.Commands = append(t.Commands, command{Words: c.words, Args: c.args, Summary: c.summary, Help: c.help, Declare: c.declare})
	}
	for _, o := range options {
		t.Settings = append(t.Settings, cmdline.Setting{Env: o.env, Flag: o.flag, Value: o.value, Standard: o.standard, Help: o.help})
	}
	return t
}

// acceptsSetting reports whether a command reads the setting with this flag.
func acceptsSetting(words, setting string) bool {
	switch words {
	case "":
		return true
	case "help", "version":
		return false
	case "healthcheck":
		return setting == "addr" || setting == "https-domain" || setting == "tls-cert"
	case "mail test":
		return setting == "mail-from"
	}
	switch setting {
	case "database":
		return true
	case "event-retention":
		return words == "events verify"
	case "issuer":
		if words == "user totp" {
			return true
		}
		fallthrough
	case "password-min-length":
		return words == "user add" || words == "user passwd" || words == "user import"
	}
	return false
}

// runCommand runs a command. If root runs it in the directory of another user, it starts userd
// again as that user, who could rename files there and so make root write elsewhere.
func (c *cli) runCommand(ctx context.Context, cmd *command, run action) error {
	if cmd.Words != "" && acceptsSetting(cmd.Words, "database") {
		user, err := safefile.ActAs(c.database)
		if err != nil {
			return pathError(c.database, err)
		}
		if cmd.Words == "backup" && c.args[0] != "-" {
			owner, err := safefile.ActAs(c.args[0])
			if err != nil {
				return err
			}
			if !user.Equal(owner) {
				return c.backupElsewhere(user, owner)
			}
		}
		if user != nil {
			return c.runAs(user, c.given, c.stdout)
		}
	}
	return plainError(run(ctx, c))
}

const about = `userd manages users: it registers them, logs them in with JSON Web Tokens, and
lets them and admins read, change and delete them over a JSON API. It keeps its
data in one SQLite file.

Usage:
  userd [flags]                      run the server
  userd COMMAND [flags] [arguments]  run a command on the database
`

// printHelp prints the requested help. It returns a usageError if the topic is not
// a command.
func printHelp(w io.Writer, help *cmdline.HelpRequest) error {
	text := ""
	if help.All {
		text = manual()
	} else if help.Env {
		text = environmentExample()
	} else if len(help.Topic) == 0 {
		text = summary()
	} else {
		var err error
		if text, err = table().Help(help.Topic); err != nil {
			return usagef("%v", err)
		}
	}
	_, err := io.WriteString(w, text)
	return err
}

// summary returns the short help: all commands, and the most used settings.
func summary() string {
	text := about + "\nCommands:\n" + table().List("")
	text += "\nThe most used settings, with their environment variables and defaults:\n"
	for _, name := range []string{"database", "addr", "registration", "https-domain", "trusted-proxies", "log-level"} {
		o := options[slices.IndexFunc(options, func(o option) bool { return o.flag == name })]
		text += strings.TrimRight(fmt.Sprintf("  %-27s  %-16s  %s", "-"+o.flag+" "+o.value, o.env, o.standard), " ") + "\n"
	}
	return text + `
Flags can be anywhere on the command line. USER is a username, an e-mail
address, or an id written as id=7. -json prints one JSON object a line.

More help:
  userd help COMMAND  explain a command, as "userd help user add"
  userd help -all     print the whole manual: all commands and all settings
  userd help -env     print an example of an environment file, with all settings
`
}

func withDefault(help, standard string) string {
	if standard == "" {
		return help
	}
	return help + " Default: " + standard
}

// manual returns the help of all commands and settings.
func manual() string {
	text := about + "\n" + terminal.Wrap("", `Flags can be anywhere on the command line; what follows -- is not a flag. Flags override
		environment variables, and those override defaults.

		The commands work on the database whether a server is running or not; a running
		server sees their changes immediately. If root runs them and the directory of the
		database belongs to another user, they run as that user.

		The only setting that commands accept is -database, with five exceptions: events
		verify also accepts -event-retention; user add, user passwd and user import also
		accept -password-min-length and -issuer; user totp also accepts -issuer; mail test
		accepts only -mail-from; healthcheck accepts only -addr, -https-domain and -tls-cert.

		USER is a username, an e-mail address, or an id written as id=7. A list is a table;
		with -json it is one JSON object a line. In a table, - marks a time or an id that does
		not exist.

		The exit status is 0 for success, 1 for failure, and 2 for a wrong command or
		configuration.`)
	text += table().Manual()
	text += "\nSettings that only the environment can hold:\n"
	for _, x := range secrets {
		text += "  " + x.env + ", " + x.env + "_FILE\n" + terminal.Wrap("      ", x.help+" "+x.env+"_FILE names a file that holds it instead.")
	}
	for _, v := range variables {
		text += "  " + v.env + "\n" + terminal.Wrap("      ", withDefault(v.help, v.standard))
	}
	return text
}

// commands is the command table. Help and flags come from here: see cmdline.Command.
var commands = []struct {
	words, args, summary, help string
	declare                    func(*flag.FlagSet) action
}{
	{"", "", "run the server",
		`Without a command, userd serves until it is interrupted or terminated. It then
		finishes the running requests, closes the database and exits. On SIGHUP it reads the
		files TLS_CERT and TLS_KEY again. Without HTTPS, SIGHUP ends userd like SIGTERM.`,
		noFlags(nil)},
	{"user add", "NAME [EMAIL]", "add a user",
		`Adds a user and prints its id. The password is the first line of standard input; on
		a terminal userd asks for it twice and does not show it. A service user, for a program,
		has no EMAIL and no password.`,
		userAdd},
	{"user list", "", "list all users",
		`Prints all users, ordered by id.`,
		opens(userList)},
	{"user show", "USER", "show one user",
		`Prints one user, one field a line.`,
		opens(userShow)},
	{"user set", "USER", "change a user's name, address, role or status",
		`Changes what the flags name, and prints the user, one field a line. Disabling a user ends its sessions. A new
		address is not verified, unless -email-verified=true is given too.
		The last active admin can be neither demoted nor disabled.`,
		opens(userSet)},
	{"user passwd", "USER", "set a user's password",
		`Sets a password and ends all of the user's sessions. The password is the first line
		of standard input; on a terminal userd asks for it twice and does not show it.`,
		opens(noFlags(userPasswd))},
	{"user reset-link", "USER", "print a link that sets a new password",
		`Prints a link with which the user can set a new password once, and ends its earlier
		link. The link is a secret: the first person who opens it can set the password. It
		leads to the page that the server stored when it started: see APP_URL and RESET_URL.`,
		opens(userResetLink)},
	{"user invite", "", "print a link with which users register",
		`Prints a link with which new users can register, whatever REGISTRATION says. With
		-email, only this address can register, and it is then verified: send the link only
		there. The link leads to the page that the server stored when it started: see APP_URL
		and INVITE_URL.`,
		opens(userInvite)},
	{"user totp", "USER", "show, add or remove a user's second factor",
		`Prints whether the user has a second factor, since when, how many recovery codes are
		left, and whether wrong codes have locked it, so that only a recovery code works.
		-off is for a user who has lost the app and the recovery codes.`,
		opens(userTOTP)},
	{"user approve", "USER", "let a waiting user log in",
		`Approves a user that registered with REGISTRATION=approval, so that it can log in.
		userd does not tell the user. To refuse a user, delete it.`,
		opens(noFlags(userApprove))},
	{"user delete", "USER", "delete a user",
		`Deletes a user and ends its sessions. The last active admin cannot be deleted.`,
		opens(noFlags(userDelete))},
	{"user import", "FILE", "add users from a CSV or NDJSON file",
		`Reads CSV, or NDJSON with one object a line, as "userd user export" writes them, a
		JSON array of such objects, or the CSV of Django's table auth_user. If FILE is -, it
		reads standard input. It skips empty lines and rows of only commas.

		Each user needs username, email, and either password, which is hashed, or
		password_hash (argon2, bcrypt, scrypt, or PBKDF2 as Werkzeug and Django write it).
		Optional are id, role, disabled, pending, created_at, updated_at, last_login_at,
		email_verified_at, service and totp_secret. An id must be higher than every id that
		this database has given to a user. A totp_secret, in base32, gives the user a second
		factor without recovery codes. If service is true, only username is needed, and email,
		email_verified_at, the password, its hash and totp_secret must be empty.

		Each bad row is reported on standard error with its number, in order; a CSV header is
		row 1. If any row is bad, nothing is imported, unless -partial is given.`,
		userImport},
	{"user export", "", "write all users, with their secrets",
		`Writes all users with their password hashes and TOTP secrets, as of one moment, in
		CSV. It refuses to write to a terminal.`,
		opens(userExport)},
	{"session list", "USER", "list a user's sessions",
		`Prints the active sessions of a user.`,
		opens(sessionList)},
	{"session end", "USER [SESSION]", "end one session of a user, or all",
		`Ends the session with the id SESSION or, without it, all sessions of the user.`,
		opens(noFlags(sessionEnd))},
	{"invitation list", "", "list the invitations",
		`Prints the valid invitations, without their links.`, opens(invitationList)},
	{"invitation delete", "ID", "end an invitation",
		`Deletes an invitation: no user can register with its links any more.`, opens(noFlags(invitationDelete))},
	{"token add", "USER NAME", "make an API key",
		`Makes an API key of a user and prints it. userd does not show it again. NAME says what
		the key is for.`, opens(tokenAdd)},
	{"token list", "USER", "list a user's API keys",
		`Prints the API keys of a user without the keys themselves. Expired keys stay for 30 days.`, opens(tokenList)},
	{"token revoke", "USER ID", "revoke an API key",
		`Deletes the API key with this id: its next request is refused.`, opens(noFlags(tokenRevoke))},
	{"mail test", "ADDRESS", "send a test message",
		`Sends a message with MAIL_URL and MAIL_FROM, which must have the values of the server,
		and prints what went wrong. It does not use the database.`,
		noFlags(mailTest)},
	{"mail list", "", "list the outbox",
		`Prints the outbox: the mails that wait, and those that were sent, failed or dropped
		in the last seven days. It shows no codes, because the database does not store them.`,
		opens(mailList)},
	{"mail retry", "[ID]", "try a mail again now",
		`Tells the server to send the mail with this id now or, without an id, every mail that
		waits or has failed.`,
		opens(noFlags(mailRetry))},
	{"key list", "", "list the keys that sign access tokens",
		`Prints the keys in the database, without their secrets.`,
		opens(keyList)},
	{"key rotate", "", "sign access tokens with a new key",
		`Makes a new key, which signs access tokens from now on. The key before it verifies
		tokens until the last one that it signed has expired, unless -now is given. If the
		servers sign with JWT_SECRET_KEY, this command refuses. With -data, it replaces no key:
		it encrypts the TOTP secrets again under the DATA_KEY that is set now.`,
		opens(keyRotate)},
	{"events", "", "list what has happened",
		`Prints the events: who did what to which user, and from which address. A table shows
		the current name of a user after its id.`,
		opens(eventList)},
	{"events verify", "[HEAD]", "check that no event was changed or removed",
		`Recomputes the chain of events and prints its newest link, the head. It fails if
		events were changed, removed or inserted. With a HEAD that you noted elsewhere, it
		detects every change up to that head. It also fails if events younger than
		EVENT_RETENTION were deleted: set that to the server's value.`,
		opens(noFlags(eventsVerify))},
	{"backup", "FILE", "write a copy of the database",
		`Writes a consistent copy of the database to FILE, which must not exist, or to
		standard output if FILE is -. The server may keep running.`,
		noFlags(backup)},
	{"restore", "FILE", "replace the database by a copy",
		`Replaces the database by a copy. No other process may have the database open. The
		previous database is kept next to the new one. New users and sessions get higher ids
		than any that the previous database gave out.`,
		noFlags(restore)},
	{"check", "", "check the database for damage",
		`Reads the whole database and prints what is wrong with it, one finding a line; the
		exit status is then 1. It changes nothing, and the server may keep running.`,
		noFlags(check)},
	{"adopt", "", "upgrade a database of the Flask tutorial",
		`Upgrades a database of the Flask tutorial for userd, after a copy next to it. The
		server and most other commands do this first; backup, restore and check do not. It
		refuses if users differ only in the case of a username or e-mail address, unless
		-resolve is given.`,
		adoptDatabase},
	{"healthcheck", "", "ask the running server whether it is ready",
		`Asks the server with these settings whether it is ready, for containers without
		curl. It does not use the database.`,
		noFlags(askReady)},
	{"help", "[COMMAND...]", "explain a command",
		`Explains a command or a group of commands, such as user. Without an argument it
		prints a summary.`,
		helpCommand},
	{"version", "", "print the version",
		`Prints the version of userd and of Go.`,
		noFlags(printVersion)},
}

func helpCommand(f *flag.FlagSet) action {
	all := f.Bool("all", false, "Print the whole manual: all commands and all settings.")
	env := f.Bool("env", false, "Print an example of an environment file, with all settings and their defaults.")
	return func(_ context.Context, c *cli) error {
		return &cmdline.HelpRequest{Topic: c.args, All: *all, Env: *env}
	}
}

func printVersion(_ context.Context, c *cli) error {
	_, err := fmt.Fprintln(c.stdout, "userd", version())
	return err
}

// askReady asks the server with this configuration whether it is ready, for
// containers without curl. It does not use the database.
func askReady(ctx context.Context, c *cli) error {
	server := healthcheck.Server{Address: c.addr, Path: "/readyz", HTTPS: c.tlsCert != "" || len(c.domains) > 0}
	if len(c.domains) > 0 {
		server.Name = c.domains[0]
	}
	url, client := server.URL(), server.Client()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	const advice = "give this command the settings of the server: ADDR (-addr) or HOST and PORT, HTTPS_DOMAIN (-https-domain) and TLS_CERT (-tls-cert)"
	resp, err := client.Do(r)
	if failed, ok := errors.AsType[*neturl.Error](err); ok {
		return fmt.Errorf("no answer from %s: %w; start the server, or %s", url, failed.Err, advice)
	}
	if err != nil {
		return err
	}
	resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusServiceUnavailable:
		return fmt.Errorf("%s answered %s: the server is not ready, and its log says why", url, resp.Status)
	default:
		return fmt.Errorf("%s answered %s instead of 200; %s", url, resp.Status, advice)
	}
	_, err = fmt.Fprintf(c.stdout, "%s: ready\n", url)
	return err
}

// parse reads the arguments and the environment into c, and returns the command
// and its action. It returns a HelpRequest, or a usageError of one line that
// names the command, the flag or the setting.
func (c *cli) parse(args []string, getenv func(string) string) (*command, action, error) {
	if len(args) == 1 && (args[0] == "-version" || args[0] == "--version") {
		args = []string{"version"}
	}
	c.given = args
	call, err := table().Parse(args)
	if _, help := errors.AsType[*cmdline.HelpRequest](err); help {
		return nil, nil, err
	}
	if err != nil {
		return nil, nil, usagef("%v", err)
	}
	c.args = call.Args
	return call.Command, call.Action, c.load(call.Settings, getenv, func(flag string) bool { return acceptsSetting(call.Words, flag) })
}
