package ganbauth

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// appendRecord makes the record of a token: a version, two times in seconds, strings.
func appendRecord(version byte, first, second time.Time, fields []*string) []byte {
	b := []byte{version}
	b = binary.AppendVarint(b, first.Unix())
	b = binary.AppendVarint(b, second.Unix())
	for _, s := range fields {
		b = appendString(b, *s)
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// readRecord reads what appendRecord made. When it fails, the fields may have changed.
func readRecord(data string, version byte, first, second *time.Time, fields []*string) error {
	r := recordReader{rest: data}
	if v := r.uvarint(); v != uint64(version) && r.err == nil {
		return fmt.Errorf("%w: version %d", errCorrupt, v)
	}
	*first, *second = r.time(), r.time()
	for _, s := range fields {
		*s = r.string()
	}
	return r.end()
}

// recordReader reads the parts of a record. After the first fault everything reads as
// zero. Its strings share one allocation.
type recordReader struct {
	rest string
	err  error
}

// uvarint reads a number as [binary.AppendUvarint] writes it.
func (r *recordReader) uvarint() (v uint64) {
	for i := range min(len(r.rest), binary.MaxVarintLen64) {
		c := r.rest[i]
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			r.rest = r.rest[i+1:]
			return v
		}
	}
	r.err, r.rest = errRecordTruncated, ""
	return 0
}

// time reads seconds since 1970, zigzag-coded as by [binary.AppendVarint].
func (r *recordReader) time() time.Time {
	u := r.uvarint()
	return time.Unix(int64(u>>1)^-int64(u&1), 0).UTC()
}

func (r *recordReader) string() string {
	n := r.uvarint()
	if n > uint64(len(r.rest)) {
		r.err, r.rest = errRecordTruncated, ""
		return ""
	}
	s := r.rest[:n]
	r.rest = r.rest[n:]
	return s
}

func (r *recordReader) end() error {
	if r.rest != "" {
		r.err = fmt.Errorf("%w: %d bytes left over", errCorrupt, len(r.rest))
	}
	return r.err
}

// Errors of bytes that are no record, or not a whole one.
var (
	errCorrupt         = errors.New("record cannot be read")
	errRecordTruncated = fmt.Errorf("%w: truncated", errCorrupt)
)
