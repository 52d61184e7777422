package redisstore

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/ganbauth/ganbauth"
)

// readPage returns at most n entries of a sorted set behind an entry, which need not be
// in it. Where many have the same score, that place is found by halving. Members are
// compared byte by byte, as in a sorted set; Lua itself would go by the server's locale.
var readPage = newScript(`
local score, member, n = ARGV[1], ARGV[2], tonumber(ARGV[3])
local function behind(other)
	for i = 1, math.min(#other, #member) do
		local a, b = string.byte(other, i), string.byte(member, i)
		if a ~= b then return a > b end
	end
	return #other > #member
end
local first = redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. score)
local last = redis.call('ZCOUNT', KEYS[1], '-inf', score)
while first < last do
	local middle = math.floor((first + last) / 2)
	if behind(redis.call('ZRANGE', KEYS[1], middle, middle)[1]) then last = middle else first = middle + 1 end
end
return redis.call('ZRANGE', KEYS[1], first, first + n - 1, 'WITHSCORES')`)

// merge reads the index in the order of its entries. It holds a few entries of each
// sorted set.
type merge struct {
	*Store
	after  ganbauth.Expiry
	before time.Time
	few    int // entries of a set that are read at once
	sets   [shards]part
}

// part is what is known of one sorted set.
type part struct {
	entries []ganbauth.Expiry // not returned yet
	after   ganbauth.Expiry   // the last that was read
	done    bool              // nothing is behind the last
}

func (s *Store) merge(after ganbauth.Expiry, before time.Time, limit int) *merge {
	m := &merge{Store: s, after: after, before: before, few: min(2*limit/shards+8, 64)}
	for i := range m.sets {
		m.sets[i].after = after
	}
	return m
}

// next returns at most limit entries, and none at the end.
func (m *merge) next(ctx context.Context, limit int) (page []ganbauth.Expiry, err error) {
	for len(page) < limit {
		if err := m.fill(ctx); err != nil {
			return nil, err
		}
		least := -1
		for i := range m.sets {
			if e := m.sets[i].entries; len(e) > 0 && (least < 0 || compare(e[0], m.sets[least].entries[0]) < 0) {
				least = i
			}
		}
		if least < 0 {
			break
		}
		page = append(page, m.sets[least].entries[0])
		m.sets[least].entries = m.sets[least].entries[1:]
	}
	return page, nil
}

func compare(a, b ganbauth.Expiry) int {
	return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Key, b.Key))
}

// fill reads on until the next entry of each sorted set is known, or its end.
func (m *merge) fill(ctx context.Context) error {
	for {
		unknown := m.unknown()
		if len(unknown) == 0 {
			return nil
		}
		if err := m.read(ctx, unknown); err != nil {
			return err
		}
	}
}

// unknown returns sorted sets whose next entry is not known, but few at a time: Redis
// serves nobody else during a round trip.
func (m *merge) unknown() (sets []int) {
	const most = 16
	for i := range m.sets {
		if len(m.sets[i].entries) == 0 && !m.sets[i].done && len(sets) < most {
			sets = append(sets, i)
		}
	}
	return sets
}

// read reads on in some of the sorted sets.
func (m *merge) read(ctx context.Context, sets []int) error {
	commands := make([]Command, len(sets))
	for n, i := range sets {
		after := m.sets[i].after
		commands[n] = readPage.command([]string{m.shard(i)},
			[]string{strconv.FormatInt(after.At.Unix(), 10), after.Key, strconv.Itoa(m.few)})
	}
	answers := m.runAll(ctx, m.client, readPage, commands)
	for n, i := range sets {
		if err := m.take(&m.sets[i], answers[n]); err != nil {
			return err
		}
	}
	return nil
}

// take puts an answer of readPage, which has keys and scores in turn, in part.
func (m *merge) take(part *part, answer Answer) (err error) {
	values, ok := answer.Value.([]any)
	if answer.Err != nil || !ok {
		return cmp.Or(answer.Err, errNoList)
	}
	part.done = len(values) < 2*m.few
	for ; len(values) > 1 && err == nil; values = values[2:] {
		key, _ := values[0].(string)
		score, _ := values[1].(string)
		var second float64
		second, err = strconv.ParseFloat(score, 64)
		part.after = ganbauth.Expiry{At: time.Unix(int64(second), 0).UTC(), Key: key}
		if !part.after.At.Before(m.before) {
			part.done = true
			break
		}
		if compare(part.after, m.after) > 0 {
			part.entries = append(part.entries, part.after)
		}
	}
	return err
}

var errNoList = errors.New("the answer to a script is not a list")
