package mysqlstore_test

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/internal/storetest"
	"github.com/ganbauth/ganbauth/lease"
	"github.com/ganbauth/ganbauth/mysqlstore"
)

// answer is what a statement gets.
type answer struct {
	err     error // of the statement
	changed int64
	rows    [][]driver.Value
	late    error // in place of the number of changed rows, or behind the last row
}

func (a answer) LastInsertId() (int64, error) { return 0, nil }
func (a answer) RowsAffected() (int64, error) { return a.changed, a.late }
func (a *answer) Close() error                { return nil }

func (a *answer) Columns() []string {
	if len(a.rows) == 0 {
		return nil
	}
	return make([]string, len(a.rows[0]))
}

func (a *answer) Next(row []driver.Value) error {
	if len(a.rows) == 0 {
		return cmp.Or(a.late, io.EOF)
	}
	copy(row, a.rows[0])
	a.rows = a.rows[1:]
	return nil
}

// server answers as no server does at will. It is a connector, and all of its connections.
type server struct {
	answers map[string][]answer // by how a statement begins: one after the other, and the last one again and again

	mu   sync.Mutex
	sent []string // the first words of statements
}

func (s *server) Connect(ctx context.Context) (driver.Conn, error) { return s, ctx.Err() }
func (s *server) Driver() driver.Driver                            { return nil }
func (s *server) Prepare(string) (driver.Stmt, error)              { return nil, errBroken }
func (s *server) Begin() (driver.Tx, error)                        { return nil, errBroken }
func (s *server) Close() error                                     { return nil }

func (s *server) ExecContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Result, error) {
	a := s.answer(query)
	return a, a.err
}

func (s *server) QueryContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Rows, error) {
	a := s.answer(query)
	return a, a.err
}

const lookSQL = "SELECT @@autocommit"

// answer is that each statement changes a row, and autocommit is on, if it is not told
// otherwise.
func (s *server) answer(query string) *answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if word, _, _ := strings.Cut(query, " "); query != lookSQL {
		s.sent = append(s.sent, word)
	}
	for begin, answers := range s.answers {
		if strings.HasPrefix(query, begin) {
			if len(answers) > 1 {
				s.answers[begin] = answers[1:]
			}
			return &answers[0]
		}
	}
	return &answer{changed: 1, rows: [][]driver.Value{{int64(1)}}}
}

// bubble runs fn in a bubble of synctest, with a pool of connections to s.
func (s *server) bubble(t *testing.T, fn func(t *testing.T, db *sql.DB)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		db := sql.OpenDB(s)
		defer db.Close()
		fn(t, db)
		time.Sleep(time.Minute) // what goes on in the background ends
	})
}

var errBroken = errors.New("broken")

// What fails is told at once, wherever it fails.
func TestAnswersThatFail(t *testing.T) {
	broken := []answer{{err: errBroken}}
	late := []answer{{changed: 1, late: errBroken}}
	calls := map[string]func(context.Context, *mysqlstore.Store) error{
		"Migrate": func(ctx context.Context, s *mysqlstore.Store) error { return s.Migrate(ctx) },
		"Save": func(ctx context.Context, s *mysqlstore.Store) error {
			return s.Save(ctx, "k", storetest.Token("a"))
		},
		"Lock": func(ctx context.Context, s *mysqlstore.Store) error { _, err := s.Lock(ctx, "k"); return err },
		"Expiring": func(ctx context.Context, s *mysqlstore.Store) error {
			_, err := s.Expiring(ctx, time.Now())
			return err
		},
	}
	for name, test := range map[string]struct {
		call    string
		answers map[string][]answer
	}{
		"whether there is autocommit, asked by Migrate": {"Migrate", map[string][]answer{lookSQL: broken}},
		"whether there is autocommit":                   {"Save", map[string][]answer{lookSQL: broken}},
		"whether there is a table":                      {"Migrate", map[string][]answer{"SELECT COUNT": broken}},
		"a record replaced":                             {"Save", map[string][]answer{"UPDATE": broken}},
		"how many records were replaced":                {"Save", map[string][]answer{"UPDATE": late}},
		"how many were inserted":                        {"Save", map[string][]answer{"UPDATE": {{}}, "INSERT": late}},
		"who holds a lock":                              {"Lock", map[string][]answer{"SELECT COALESCE": broken}},
		"a page, in the middle": {"Expiring", map[string][]answer{
			"SELECT due_at": {{rows: [][]driver.Value{{int64(1), "k"}}, late: errBroken}},
		}},
		"a row of a page": {"Expiring", map[string][]answer{
			"SELECT due_at": {{rows: [][]driver.Value{{"broken", "k"}, {int64(1), "k"}}}},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &server{answers: test.answers}
			s.bubble(t, func(t *testing.T, db *sql.DB) {
				begun := time.Now()
				err := calls[test.call](t.Context(), mysqlstore.New(db, mysqlstore.Options{}))
				require.ErrorContains(t, err, "broken")
				require.Zero(t, time.Since(begun))
			})
		})
	}
}

// A row that another inserts is replaced. It may come and go: then nothing is stored, and
// nothing seems to be.
func TestRowsThatComeAndGo(t *testing.T) {
	save := func(ctx context.Context, s *mysqlstore.Store) error { return s.Save(ctx, "k", storetest.Token("a")) }
	swap := func(ctx context.Context, s *mysqlstore.Store) error {
		return s.Swap(ctx, "k", nil, storetest.Token("a"))
	}
	for name, test := range map[string]struct {
		write func(context.Context, *mysqlstore.Store) error
		there int64 // whether the row is there at last
		want  string
	}{
		"saved":       {save, 1, ""},
		"swapped":     {swap, 1, ""},
		"not saved":   {save, 0, "mysqlstore: save: its row comes and goes"},
		"not swapped": {swap, 0, ganbauth.ErrSuperseded.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			taken := answer{err: &mysql.MySQLError{Number: 1062}}
			s := &server{answers: map[string][]answer{"UPDATE": {{}, {}, {changed: test.there}}, "INSERT": {taken}}}
			s.bubble(t, func(t *testing.T, db *sql.DB) {
				err := test.write(t.Context(), mysqlstore.New(db, mysqlstore.Options{}))
				if test.want == "" {
					require.NoError(t, err)
				} else {
					require.EqualError(t, err, test.want)
				}
				require.Equal(t, strings.Fields("UPDATE INSERT UPDATE INSERT UPDATE"), s.sent)
			})
		})
	}
}

// What has failed is deleted at the next interval, which has at least a second.
func TestCleanupGoesOn(t *testing.T) {
	s := &server{answers: map[string][]answer{"DELETE": {{err: errBroken}, {changed: 1, late: errBroken}, {changed: 1}, {}}}}
	s.bubble(t, func(t *testing.T, db *sql.DB) {
		ctx, cancel := context.WithTimeout(t.Context(), 3500*time.Millisecond)
		defer cancel()
		store := mysqlstore.New(db, mysqlstore.Options{})
		require.ErrorIs(t, store.Cleanup(ctx, time.Millisecond), context.DeadlineExceeded)
		require.Len(t, s.sent, 1+1+2+1)
	})
}

// A call has three seconds, however long a connection takes.
func TestCallsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := sql.OpenDB(waiting{})
		defer db.Close()
		begun := time.Now()
		_, err := mysqlstore.New(db, mysqlstore.Options{}).Load(t.Context(), "k")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 3*time.Second, time.Since(begun))
	})
}

// Locks are extended over two connections at most.
func TestConnectionsForBeats(t *testing.T) {
	s := &server{}
	s.bubble(t, func(t *testing.T, db *sql.DB) {
		var made atomic.Int32
		connect := make(chan bool)
		connector := hooked{s, func() { made.Add(1); <-connect }}
		e := mysqlstore.EngineOf(mysqlstore.New(db, mysqlstore.Options{Connector: connector}))
		var beats sync.WaitGroup
		for range 10 {
			beats.Go(func() { assert.NoError(t, e.Extend(t.Context(), "k", "one")) })
		}
		synctest.Wait()
		require.Equal(t, int32(2), made.Load())
		close(connect)
		beats.Wait()
		e.(lease.Rester).Rest()
	})
}
