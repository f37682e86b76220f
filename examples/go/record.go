package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log"
	"math"

	"github.com/vmihailenco/msgpack/v5"
	"github.com/zeebo/xxh3"
)

type header struct {
	Batch int      `msgpack:"batch"`
	Pass  int      `msgpack:"pass"`
	Rows  int      `msgpack:"rows"`
	Dtype string   `msgpack:"dtype"`
	Needs []string `msgpack:"must_understand"`
}

var widths = map[string]int{"float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "uint8": 1}

// show checks a record's value, [format, checksum, header, payload], and prints what it holds.
func show(from string, value []byte) {
	var h header
	d := msgpack.NewDecoder(bytes.NewReader(value))
	if must(d.DecodeArrayLen()) != 4 || must(d.DecodeInt()) != 1 {
		log.Fatal("not a record of format 1")
	}
	checksum, packed, payload := must(d.DecodeUint64()), must(d.DecodeBytes()), must(d.DecodeBytes())
	if xxh3.Hash(append(bytes.Clone(packed), payload...)) != checksum {
		log.Fatal("a damaged record: its checksum is another")
	}
	if err := msgpack.Unmarshal(packed, &h); err != nil || len(h.Needs) > 0 || widths[h.Dtype] == 0 {
		log.Fatal("a record of a later version, or none: ", err, h)
	}
	fmt.Printf("%s batch %d pass %d rows %d:", from, h.Batch, h.Pass, h.Rows)
	for place := 0; place < min(3*widths[h.Dtype], len(payload)); place += widths[h.Dtype] {
		fmt.Printf(" %v", number(h.Dtype, payload[place:]))
	}
	fmt.Println()
}

func number(dtype string, b []byte) float64 {
	switch dtype {
	case "float32":
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(b)))
	case "bfloat16":
		return float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(b)) << 16))
	case "int64":
		return float64(int64(binary.LittleEndian.Uint64(b)))
	case "uint8":
		return float64(b[0])
	}
	bits := binary.LittleEndian.Uint16(b) // float16: a sign, 5 bits of exponent, 10 of fraction; never infinite here
	value := math.Ldexp(1024+float64(bits&1023), int(bits>>10&31)-25)
	if bits>>10&31 == 0 {
		value = math.Ldexp(float64(bits&1023), -24)
	}
	if bits>>15 == 1 {
		return -value
	}
	return value
}
