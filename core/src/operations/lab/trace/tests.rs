use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::*;

fn operations(text: &str, format: TraceFormat) -> Vec<Operation> {
    Trace::parse(text.as_bytes(), format).expect("a good trace").operations
}

fn refused(text: &str, format: TraceFormat) -> (u64, String) {
    let error = Trace::parse(text.as_bytes(), format).expect_err("a bad trace");
    (error.line, error.what)
}

fn write(offset: u64, length: u64) -> Operation {
    Operation::Write { offset, length, zeros: false }
}

#[test]
fn qemu_io_scripts_are_read() {
    let text = "write 0 64k\nw -P 0 1M 0x1000\nwrite -q -z -u 2M 1M\n# mark monday\n# talk\naio_write -P 7 4k 1k 1k\n\
                discard 1.5G 128k\nread 0 512\nflush\nwrite 0 0\nwrite -zq 0 1\n";
    let expected = vec![
        write(0, 65536),
        Operation::Write { offset: 1 << 20, length: 4096, zeros: true },
        Operation::WriteZeroes { offset: 2 << 20, length: 1 << 20, unmap: true },
        Operation::Mark("monday".into()),
        write(4096, 2048),
        Operation::Discard { offset: 3 << 29, length: 131_072 },
        Operation::Flush,
        Operation::WriteZeroes { offset: 0, length: 1, unmap: false },
    ];
    let trace = Trace::parse(text.as_bytes(), TraceFormat::QemuIo).expect("a good trace");
    assert_eq!(trace.operations, expected);
    assert_eq!((trace.ignored, trace.end()), (3, (3 << 29) + 131_072));
}

#[test]
fn what_cannot_be_replayed_is_refused_with_its_line() {
    for (text, line, what) in [
        ("write 0 64k\nwrite -c 0 64k", 2, "compressed"),
        ("write 0", 1, "length is missing"),
        ("write 0 1 2", 1, "one word too many"),
        ("write -k 0 512", 1, "option -k"),
        ("write x 512", 1, "no size: x"),
        ("write 0 1Z", 1, "no size"),
        ("write 7E 7E", 1, "2^63"),
        ("write 99999999999999999999 1", 1, "no size"),
        ("truncate 0", 1, "truncate"),
        ("write -u 0 512", 1, "-u requires -z"),
    ] {
        let (at, why) = refused(text, TraceFormat::QemuIo);
        assert!(at == line && why.contains(what), "{text}: line {at}: {why}");
    }
    assert_eq!(refused("\n\nfoo,1,2,", TraceFormat::Csv).0, 3);
    let long = "x".repeat(MAX_TRACE_LINE + 1);
    assert!(refused(&long, TraceFormat::QemuIo).1.contains("longer"));
    assert!(Trace::parse(b"\xff\xfe", TraceFormat::QemuIo).is_err());
}

#[test]
fn fio_logs_are_read() {
    let body = ["add", "open", "write 4096 8192", "read 0 512", "trim 0 65536", "datasync 0 0", "wait 10 0", "close"];
    let mut two = String::from("fio version 2 iolog\n");
    let mut three = String::from("fio version 3 iolog\n");
    for (time, line) in (0..).zip(body) {
        two += &format!("/dev/vdb {line}\n");
        three += &format!("{time} /dev/vdb {line}\n");
    }
    let expected = vec![write(4096, 8192), Operation::Discard { offset: 0, length: 65536 }, Operation::Flush];
    for text in [&two, &three] {
        assert_eq!(TraceFormat::detect(text.as_bytes()), TraceFormat::Fio);
        assert_eq!(operations(text, TraceFormat::Fio), expected);
    }
    assert_eq!(refused("fio version 1 iolog", TraceFormat::Fio).0, 1);
    assert_eq!(refused("fio version 2 iolog\nf write 0", TraceFormat::Fio), (2, "the length is missing".into()));
    assert!(refused("fio version 3 iolog\nf write 0 1", TraceFormat::Fio).1.contains("time"));
}

#[test]
fn blkparse_text_is_read() {
    let text = "\
  8,0    3        1     0.000000000   697  Q   W 223490 + 8 [kjournald]
  8,0    3        2     0.000001829   697  D   W 223490 + 8 [kjournald]
  8,0    3        3     0.000002197   697  C   W 223490 + 8 [0]
  8,16   3        4     0.000003197   697  D   W 1 + 8 [other]
  8,0    3        5     0.000004000   697  D FWFS 8 + 8 [kworker]
  8,0    3        6     0.000005000   697  D   D 0 + 2048 [fstrim]
  8,0    3        7     0.000006000   697  D  FN [kworker]
  8,0    3        8     0.000007000   697  D   R 0 + 8 [cat]
CPU0 (sda):
 Reads Queued:           0,        0KiB
";
    assert_eq!(TraceFormat::detect(text.as_bytes()), TraceFormat::Blkparse);
    let expected = vec![
        write(223_490 * 512, 4096),
        Operation::Flush,
        write(4096, 4096),
        Operation::Flush,
        Operation::Discard { offset: 0, length: 1 << 20 },
        Operation::Flush,
    ];
    assert_eq!(operations(text, TraceFormat::Blkparse), expected);
    let queued = "8,0 0 1 0.0 1 Q W 0 + 8 [x]\n";
    assert_eq!(operations(queued, TraceFormat::Blkparse), vec![write(0, 4096)]);
    assert!(refused("8,0 0 1 0.0 1 D W 0 8 [x]\n8,0 0 1 0.0 1 D D 0 8", TraceFormat::Blkparse).1.contains('+'));
    assert!(refused("hello\n", TraceFormat::Blkparse).1.contains("neither"));
}

#[test]
fn what_is_written_is_read_back() {
    let trace = Trace {
        operations: vec![
            write(512, 100),
            Operation::Write { offset: 0, length: 5 << 30, zeros: true },
            Operation::WriteZeroes { offset: 7, length: 9, unmap: true },
            Operation::WriteZeroes { offset: 7, length: 9, unmap: false },
            Operation::Discard { offset: 1 << 40, length: 1 },
            Operation::Mark("a, b".into()),
            Operation::Flush,
        ],
        ignored: 0,
    };
    let mut text = String::new();
    trace.write(TraceFormat::Csv, &mut text).expect("written");
    assert_eq!(TraceFormat::detect(text.as_bytes()), TraceFormat::Csv);
    assert_eq!(operations(&text, TraceFormat::Csv), trace.operations);

    let mut script = String::new();
    trace.write(TraceFormat::QemuIo, &mut script).expect("written");
    let read = operations(&script, TraceFormat::QemuIo);
    let bytes: u64 = read.iter().filter_map(Operation::range).map(|(_, length)| length).sum();
    assert_eq!(bytes, 100 + (5 << 30) + 9 + 9 + 1);
    assert!(read.iter().filter_map(Operation::range).all(|(_, length)| length <= 2_147_483_136));
    assert!(trace.write(TraceFormat::Fio, &mut script).is_err());
}

/// `qemu-io` takes less than 2 GiB at once: a line of a few bytes could become a script of as many gigabytes.
#[test]
fn a_script_of_too_many_commands_is_refused() {
    let operations = vec![Operation::Discard { offset: 0, length: 1 << 62 }];
    let mut text = String::new();
    let trace = Trace { operations, ignored: 0 };
    assert!(trace.write(TraceFormat::QemuIo, &mut text).is_err());
    assert_eq!(text, "");
    assert!(trace.write(TraceFormat::Csv, &mut text).is_ok());
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_an_input(text: Vec<u8>, words in "[a-z0-9 ,.+#-]{0,200}\n?[A-Zfio0-9 ,]{0,80}") {
        for (_, format) in TraceFormat::NAMES {
            let _ = Trace::parse(&text, format);
            let _ = Trace::parse(words.as_bytes(), format);
        }
        let _ = TraceFormat::detect(&text);
    }
}
