/*
Userd is a user-management microservice: registration, login with JSON Web
Tokens, and create, read, update and delete of users over a JSON API, on an
embedded SQLite database.

Usage:

	userd [flags]
	userd user add [-admin] [flags] NAME EMAIL
	userd help
	userd version

Without a command it serves until it is interrupted or terminated; then it
finishes the requests that run, closes the database and exits.

"user add" adds a user, with -admin one who may do anything to anyone. It reads
the password from the first line of standard input. It works on the database of
a running server too.

Flags, and the environment variables they stand above:

	-database URL          DATABASE_URL
		The database: sqlite:///relative.db, sqlite:////absolute.db or a path;
		sqlite:///app.db if not given. Made if it does not exist.
	-addr HOST:PORT        ADDR
		The address to listen on, 127.0.0.1:5000 if not given. PORT in the
		environment sets only the port.
	-access-ttl TIME       JWT_ACCESS_TOKEN_EXPIRES
		How long an access token is good: a duration such as 15m (which it is
		if not given), or seconds.
	-refresh-ttl TIME      JWT_REFRESH_TOKEN_EXPIRES
		How long a session lasts, likewise; 720h if not given.
	-registration WHO      REGISTRATION
		open: anyone makes a user (if not given); closed: only an admin does.
	-directory WHAT        DIRECTORY
		What a member sees of others: full (id, username, email), names (id,
		username; if not given) or self (nothing).
	-trusted-proxies CIDR,...  TRUSTED_PROXIES
		The proxies whose X-Forwarded-For is believed; none if not given.
	-log-format FORMAT     LOG_FORMAT
		text or json; if not given, text on a terminal and else json.
	-log-level LEVEL       LOG_LEVEL
		debug, info (if not given), warn or error. The log goes to standard error.

The environment alone holds the key that signs access tokens:

	JWT_SECRET_KEY
		At least 32 bytes. If not set, userd makes a random key at its first
		start and keeps it in the database.
	JWT_SECRET_KEY_FILE
		A file that holds the key instead.

The exit status is 0 when all is done, 1 when it failed, and 2 when the command
or the configuration is wrong.
*/
package main

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "userd:", err)
		os.Exit(exitStatus(err))
	}
}

// A usageError is a wrong command or configuration: exit status 2.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
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
	command, args := splitCommand(args)
	switch command {
	case "help":
		_, err := io.WriteString(stdout, manual())
		return err
	case "version":
		_, err := fmt.Fprintln(stdout, "userd", version())
		return err
	case "", "user add":
	default:
		return usagef("unknown command %q: see userd help", command)
	}
	c, names, err := configure(command, args, getenv)
	if errors.Is(err, errHelp) {
		_, err := io.WriteString(stdout, manual())
		return err
	}
	if err != nil {
		return err
	}
	if command == "user add" {
		return addUserCommand(ctx, c, names, stdin, stdout)
	}
	if len(names) > 0 {
		return usagef("unknown command %q: see userd help", names[0])
	}
	return serve(ctx, c, stderr)
}

// splitCommand takes the command's words off the arguments.
func splitCommand(args []string) (command string, rest []string) {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return "", args
	}
	if args[0] == "user" && len(args) > 1 {
		return "user " + args[1], args[2:]
	}
	return args[0], args[1:]
}

//go:embed main.go
var source string

// manual returns the comment at the top of this file, so that there is one.
func manual() string {
	_, text, _ := strings.Cut(source, "/*\n")
	text, _, _ = strings.Cut(text, "*/")
	return text
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && !strings.Contains(v, s.Value[:min(12, len(s.Value))]) {
			v += " " + s.Value
		}
	}
	return v + " " + info.GoVersion
}

// Bounds on what one connection may take; a stranger can open many.
const (
	headerTimeout  = 5 * time.Second  // for a request's header to arrive
	requestTimeout = 10 * time.Second // and its body too
	writeTimeout   = 20 * time.Second // for an answer, or one part of a long one
	idleTimeout    = 60 * time.Second // between requests
	maxHeader      = 16 << 10         // bytes
	maxConnections = 8192
	drainTimeout   = 8 * time.Second // for requests that run when the server is told to stop
)

// serve runs the server until ctx ends.
func serve(ctx context.Context, c config, stderr io.Writer) error {
	log := c.logger(stderr)
	if err := inspect(ctx, c.database); err != nil {
		return err
	}
	// The port comes first: where it is taken, another userd may hold the file.
	listener, err := net.Listen("tcp", c.addr)
	if err != nil {
		return err
	}
	defer listener.Close()
	if why := weakSecret(c.secret); why != "" {
		if !isLoopback(listener.Addr()) {
			return usagef("%s: %s", c.secretFrom, why)
		}
		log.Warn(why+": fine only while nobody else can reach this address", "setting", c.secretFrom)
	}
	st, err := openStore(ctx, c.database)
	if err != nil {
		return fmt.Errorf("database %s: %w", c.database, err)
	}
	err = serveStore(ctx, c, log, listener, st)
	return errors.Join(err, st.close())
}

// serveStore serves an open database until ctx ends and the last request is done.
func serveStore(ctx context.Context, c config, log *slog.Logger, listener net.Listener, st *store) error {
	keys, err := loadKeys(ctx, st, c.secret, time.Now().Unix())
	if err != nil {
		return err
	}
	httpServer := &http.Server{
		Handler:           newServer(c.settings, st, newHasher(defaultCost), keys, log, time.Now),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug), // strangers' broken connections
	}
	served := make(chan error, 1)
	go func() { served <- httpServer.Serve(limitConnections(listener, maxConnections)) }()
	log.Info("serving", "url", "http://"+listener.Addr().String(), "database", c.database, "signing_key", c.secretFrom)

	checked := make(chan struct{})
	go func() {
		defer close(checked)
		if found, err := st.checkIntegrity(ctx); err != nil && ctx.Err() == nil {
			log.Error("the database could not be checked", "err", err)
		} else if err == nil && found != "ok" {
			log.Error("the database is damaged: restore a copy", "found", found)
		}
	}()
	defer func() { <-checked }()

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	log.Info("stopping")
	// Serve returns as soon as Shutdown begins; the requests are done when Shutdown returns.
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := httpServer.Shutdown(drain); err != nil {
		log.Warn("some requests did not end in time and were cut off", "after", drainTimeout)
		httpServer.Close()
	}
	return nil
}

func isLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// limitConnections lets at most n connections of a listener be open at once.
func limitConnections(l net.Listener, n int) net.Listener {
	return &limitedListener{l, make(chan struct{}, n)}
}

type limitedListener struct {
	net.Listener
	open chan struct{}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	l.open <- struct{}{}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.open
		return nil, err
	}
	return &limitedConn{Conn: conn, open: l.open}, nil
}

// A limitedConn gives its place back when it is closed, once.
type limitedConn struct {
	net.Conn
	open chan struct{}
	once sync.Once
}

func (c *limitedConn) Close() error {
	c.once.Do(func() { <-c.open })
	return c.Conn.Close()
}

// addUserCommand is userd user add.
func addUserCommand(ctx context.Context, c config, names []string, stdin io.Reader, stdout io.Writer) error {
	if len(names) != 2 {
		return usagef("user add takes NAME EMAIL")
	}
	password, err := readPassword(stdin)
	if err != nil {
		return err
	}
	if err := inspect(ctx, c.database); err != nil {
		return err
	}
	st, err := openStore(ctx, c.database)
	if err != nil {
		return fmt.Errorf("database %s: %w", c.database, err)
	}
	u := user{username: names[0], email: names[1], role: member}
	if c.admin {
		u.role = admin
	}
	s := &server{store: st, hasher: newHasher(defaultCost), now: time.Now}
	if err := errors.Join(s.addUser(ctx, &u, password), st.close()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "added %s %s, id %d\n", u.role, u.username, u.id)
	return err
}

// readPassword reads the first line of standard input. What is typed at a
// terminal would be seen: it is not echoed where stty can turn that off.
func readPassword(stdin io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(stdin, maxPassword+3)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("reading the password from standard input: %w", err)
	}
	return strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r"), nil
}
