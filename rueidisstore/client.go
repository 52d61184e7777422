package rueidisstore

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/ganbauth/ganbauth/redisstore"
)

// commands sends commands to Redis.
type commands struct{ client rueidis.Client }

// Do implements [redisstore.Client]. It tries once more where a connection was found
// broken, as every connection is after a restart of Redis. No command is marked as one
// that reads, so that a client that prefers replicas for reading does not ask them.
func (c commands) Do(ctx context.Context, list []redisstore.Command) []redisstore.Answer {
	answers, broken := c.try(ctx, list)
	if broken && ctx.Err() == nil {
		answers, _ = c.try(ctx, list)
	}
	return answers
}

func (c commands) try(ctx context.Context, list []redisstore.Command) (answers []redisstore.Answer, broken bool) {
	built := make(rueidis.Commands, len(list))
	for i, command := range list {
		built[i] = c.client.B().Arbitrary(command.Words...).Keys(command.Keys...).Args(command.Args...).Build()
	}
	for _, result := range c.client.DoMulti(untimed{ctx}, built...) {
		answers = append(answers, answer(result))
		broken = broken || result.NonRedisError() != nil
	}
	return answers, broken
}

// answer turns a result into what Redis said.
func answer(result rueidis.RedisResult) redisstore.Answer {
	value, err := result.ToAny()
	if rueidis.IsRedisNil(err) {
		return redisstore.Answer{}
	}
	return redisstore.Answer{Value: value, Err: err}
}

// Memory implements [redisstore.Client].
func (c commands) Memory(ctx context.Context) (infos []string, err error) {
	for _, node := range c.client.Nodes() {
		info, err := node.Do(untimed{ctx}, node.B().Info().Section("memory").Build()).ToString()
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// untimed is a context that ends as it would, but names no deadline. With one rueidis may
// wait at the socket, and closes the connection when the time is over.
type untimed struct{ context.Context }

// Deadline implements [context.Context].
func (untimed) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }

var errStale = errors.New("rueidisstore: what is in memory is too old")

// caching reads a field of a hash, from memory where it can.
type caching struct {
	commands
	ttl      time.Duration
	answered *atomic.Int64 // when the last answer came, since epoch
}

var epoch = time.Now()

// quick is how soon reads follow each other in a process for which a goroutine for each of
// them would be dear.
const quick = 10 * time.Millisecond

// EndsWithContext implements [redisstore.Client]. A read from memory waits for nothing, and
// a goroutine would cost ten times as much as the read. But rueidis heeds no context while
// it connects. So a read has no goroutine only where another has been answered just now:
// when Redis falls silent, only those of a moment wait for the client's Dialer.Timeout.
func (c caching) EndsWithContext() bool {
	return time.Since(epoch)-time.Duration(c.answered.Load()) < quick
}

// Do implements [redisstore.Client] for a single HGET.
func (c caching) Do(ctx context.Context, list []redisstore.Command) []redisstore.Answer {
	read := c.client.B().Hget().Key(list[0].Keys[0]).Field(list[0].Args[0]).Cache()
	result := c.client.DoCache(untimed{ctx}, read, c.ttl)
	if result.NonRedisError() == nil {
		c.answered.Store(int64(time.Since(epoch)))
	}
	if result.IsCacheHit() {
		// Who joins the question of another gets an answer that may have been under way for
		// long. And a clock that was set back would have what is in memory last longer.
		if left := time.Until(time.UnixMilli(result.CachePXAT())); left <= 0 || left > c.ttl {
			return []redisstore.Answer{{Err: errStale}}
		}
	}
	return []redisstore.Answer{answer(result)}
}
