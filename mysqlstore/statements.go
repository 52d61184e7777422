package mysqlstore

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/ganbauth/ganbauth"
)

// How old a row without a record must be that Cleanup deletes. A lock that is held is
// touched in that time.
const grave = 10 * time.Minute

// literal is a value in a statement. No content of it can end it.
func literal(value string) string { return "x'" + hex.EncodeToString([]byte(value)) + "'" }

// there is the condition for a record that is there: one that is younger than the TTL, if
// there is one.
func (s *Store) there() string {
	if s.ttl <= 0 {
		return "recorded = 1"
	}
	return fmt.Sprintf("recorded = 1 AND touched_at > UNIX_TIMESTAMP() - %d", seconds(s.ttl))
}

// same is the condition for a record that is old.
func (s *Store) same(old *ganbauth.Token) string {
	return s.there() + " AND fingerprint = " + literal(old.Fingerprint())
}

// columns are those of a record, and their values.
func columns(t *ganbauth.Token) (names, values []string) {
	due := "NULL"
	if t.RefreshToken != "" {
		due = strconv.FormatInt(t.ExpiresAt.Unix(), 10)
	}
	return []string{
			"recorded", "access_token", "refresh_token", "token_type", "scope", "id_token", "subject", "epoch", "judged",
			"fingerprint", "issued_at", "expires_at", "due_at", "touched_at",
		}, []string{
			"1", literal(t.AccessToken), literal(t.RefreshToken), literal(t.TokenType), literal(t.Scope), literal(t.IDToken),
			literal(t.Subject), literal(t.Epoch), literal(t.Judged), literal(t.Fingerprint()),
			strconv.FormatInt(t.IssuedAt.Unix(), 10), strconv.FormatInt(t.ExpiresAt.Unix(), 10), due, "UNIX_TIMESTAMP()",
		}
}

func (s *Store) loadSQL(key string) string {
	return "SELECT access_token, refresh_token, token_type, scope, id_token, subject, epoch, judged, issued_at, expires_at" +
		" FROM ganbauth_tokens WHERE `key` = " + literal(key) + " AND " + s.there()
}

func insertSQL(key string, t *ganbauth.Token) string {
	names, values := columns(t)
	return "INSERT INTO ganbauth_tokens (`key`, " + strings.Join(names, ", ") + ") VALUES (" +
		literal(key) + ", " + strings.Join(values, ", ") + ")"
}

// replaceSQL changes writes, too: a server counts only rows that have changed, unless the
// driver is told otherwise.
func replaceSQL(key string, t *ganbauth.Token, condition string) string {
	names, values := columns(t)
	set := "writes = writes + 1"
	for i, name := range names {
		set += ", " + name + " = " + values[i]
	}
	return "UPDATE ganbauth_tokens SET " + set + " WHERE `key` = " + literal(key) + " AND " + condition
}

func emptySQL(key, condition string) string {
	return "UPDATE ganbauth_tokens SET writes = writes + 1, recorded = 0, access_token = NULL, refresh_token = NULL," +
		" token_type = NULL, scope = NULL, id_token = NULL, subject = NULL, epoch = NULL, judged = NULL, fingerprint = NULL," +
		" issued_at = NULL, expires_at = NULL, due_at = NULL, touched_at = UNIX_TIMESTAMP()" +
		" WHERE `key` = " + literal(key) + " AND " + condition
}

// touched is the value of touched_at for a row that is locked, or still locked. The
// indexes of a record stay as they are, and those of a lock change once a minute.
const touched = "touched_at = IF(recorded = 0 AND touched_at < UNIX_TIMESTAMP() - 60, UNIX_TIMESTAMP(), touched_at)"

// takeSQL takes the lock in a row that is there, if it is free, or the caller's own, or
// held as by the dead.
func takeSQL(key, holder, deadHolder string, deadBeats int64) string {
	return "UPDATE ganbauth_tokens SET " + touched + ", writes = writes + 1, holder = " + literal(holder) + ", beats = 0" +
		" WHERE `key` = " + literal(key) + " AND (holder IS NULL OR holder = " + literal(holder) +
		" OR holder = " + literal(deadHolder) + " AND beats = " + strconv.FormatInt(deadBeats, 10) + ")"
}

func insertLockSQL(key, holder string) string {
	return "INSERT INTO ganbauth_tokens (`key`, holder, touched_at) VALUES (" + literal(key) + ", " + literal(holder) + ", UNIX_TIMESTAMP())"
}

func (s *Store) heldSQL(key string) string {
	return "SELECT COALESCE(holder, x''), beats, IF(" + s.there() + ", fingerprint, x'')" +
		" FROM ganbauth_tokens WHERE `key` = " + literal(key)
}

func extendSQL(key, holder string) string {
	return "UPDATE ganbauth_tokens SET " + touched + ", beats = beats + 1 WHERE `key` = " + literal(key) + " AND holder = " + literal(holder)
}

func unlockSQL(key, holder string) string {
	return "UPDATE ganbauth_tokens SET holder = NULL WHERE `key` = " + literal(key) + " AND holder = " + literal(holder)
}

// pageSQL reads a page in the order of the index, which has all that it needs.
func pageSQL(after ganbauth.Expiry, before time.Time, limit int) string {
	// The first second that is not before.
	end := before.Unix()
	if before.Nanosecond() > 0 {
		end++
	}
	begin := after.At.Unix()
	return fmt.Sprintf("SELECT due_at, `key` FROM ganbauth_tokens FORCE INDEX (ganbauth_tokens_due)"+
		" WHERE due_at >= %d AND due_at < %d AND (due_at > %d OR `key` > %s) ORDER BY due_at, `key` LIMIT %d",
		begin, end, begin, literal(after.Key), min(limit, math.MaxInt32))
}

// buriedSQL deletes rows that nobody has touched for that time, without a record or with
// one.
func buriedSQL(recorded int, age time.Duration) string {
	return fmt.Sprintf("DELETE FROM ganbauth_tokens WHERE recorded = %d AND touched_at < UNIX_TIMESTAMP() - %d ORDER BY touched_at LIMIT 1000",
		recorded, seconds(age))
}

// seconds rounds up: no token goes early.
func seconds(d time.Duration) int64 { return int64(math.Ceil(d.Seconds())) }

// isDuplicate reports whether a row of the key is there already.
func isDuplicate(err error) bool {
	const duplicateEntry = 1062
	var e *mysql.MySQLError
	return errors.As(err, &e) && e.Number == duplicateEntry
}

// isUndone reports whether the server has undone a statement because of a lock.
func isUndone(err error) bool {
	const lockWaitTimeout, deadlock = 1205, 1213
	var e *mysql.MySQLError
	return errors.As(err, &e) && (e.Number == lockWaitTimeout || e.Number == deadlock)
}
