//! How the build script compiles kernels: architectures, command line, and what is compiled again.

#![allow(clippy::unwrap_used)]

// The tests have no use for all of it.
#[allow(dead_code)]
#[path = "../build/nvcc.rs"]
mod nvcc;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn the_list_wins_over_the_short_cut_and_that_over_the_default() {
    let archs = |list, capability| nvcc::architectures(list, capability).unwrap();
    assert_eq!(archs(None, None), ["80", "89", "90a"]);
    assert_eq!(archs(None, Some("8.9")), ["89"]);
    assert_eq!(archs(None, Some("90")), ["90a"]);
    assert_eq!(archs(Some(" 100f, 90a;80,,90a"), Some("89")), ["80", "90a", "100f"]);
}

#[test]
fn a_list_that_is_none_says_which_variable_and_what_it_should_be() {
    for (list, says) in
        [("sm_90", "`sm_90`"), ("90b", "`90b`"), ("", "names no"), ("-1", "`-1`"), ("9000", "`9000`")]
    {
        let error = nvcc::architectures(Some(list), None).unwrap_err();
        assert!(error.contains("CONSONANCE_CUDA_ARCHS") && error.contains("80,89,90a"), "{error}");
        assert!(error.contains(says), "{error}");
    }
    assert!(nvcc::architectures(Some("75"), None).unwrap_err().contains("8.0"));
    assert!(nvcc::architectures(None, Some("fast")).unwrap_err().contains("CUDA_COMPUTE_CAP"));
}

#[test]
fn the_newest_architecture_is_there_as_portable_ptx_too() {
    let archs = nvcc::architectures(Some("90a,80"), None).unwrap();
    assert_eq!(
        nvcc::code_options(&archs),
        [
            "-gencode=arch=compute_80,code=sm_80",
            "-gencode=arch=compute_90a,code=sm_90a",
            "-gencode=arch=compute_90,code=compute_90",
        ]
    );
}

#[test]
fn headers_are_followed_through_headers_and_stop_at_the_toolkit() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    };
    let source = write("a.cu", "#include <cuda.h>\n#include \"one.cuh\"\n// #include \"four.cuh\"\n");
    let one = write("include/one.cuh", "#pragma once\n  #  include \"two.cuh\"\n#include \"toolkit.h\"\n");
    let two = write("include/two.cuh", "#include \"one.cuh\"\n");
    write("include/four.cuh", "");
    let found = nvcc::with_headers(&source, &folder.path().join("include")).unwrap();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [source, one, two]);
}

#[test]
fn the_compiler_is_found_where_the_variables_say_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let nvcc = |name: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        path
    };
    let (own, home, on_path) = (nvcc("own"), nvcc("home/bin/nvcc"), nvcc("path/nvcc"));
    let find = |known: &[(&str, &Path)]| {
        nvcc::find(|name| {
            known.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        })
    };
    let (root, path) = (folder.path().join("home"), folder.path().join("path"));
    assert_eq!(find(&[("PATH", &path), ("CUDA_HOME", &root), ("NVCC", &own)]), Some(own));
    assert_eq!(find(&[("PATH", &path), ("CUDA_HOME", &root)]), Some(home));
    assert_eq!(find(&[("PATH", &path), ("CUDA_HOME", &path)]), Some(on_path));
}

/// A compiler that counts its calls, copies the source and complains about `bad`.
#[cfg(unix)]
fn counting_compiler(folder: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join("nvcc");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\nwhile [ $# -gt 3 ]; do shift; done\n\
         echo \"$1\" >> {}/calls\nif grep -q bad \"$1\"; then echo \"$1: bad is not a type\" >&2; exit 1; fi\n\
         cp \"$1\" \"$3\"\n",
        folder.display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[cfg(unix)]
#[test]
fn only_what_changed_is_compiled_again_and_an_error_shows_what_the_compiler_said() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    let compiler = counting_compiler(folder.path());
    let calls = || {
        let text = fs::read_to_string(folder.path().join("calls")).unwrap_or_default();
        text.lines().count()
    };
    let sources: Vec<PathBuf> = ["a", "b", "c"]
        .map(|name| {
            let path = folder.path().join(name).with_extension("cu");
            fs::write(&path, format!("#include \"{name}.h\"\n")).unwrap();
            fs::write(path.with_extension("h"), "").unwrap();
            path
        })
        .to_vec();
    assert_eq!(nvcc::sources(folder.path()).unwrap(), sources);
    let build = |options: &[&str]| {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        nvcc::Compilation::new(compiler.clone(), options, &out).unwrap().run(&sources, 2)
    };

    let fatbins = build(&[]).unwrap();
    assert_eq!(fatbins, ["a", "b", "c"].map(|name| out.join(name).with_extension("fatbin")));
    assert_eq!(calls(), 3);
    build(&[]).unwrap();
    assert_eq!(calls(), 3, "nothing changed");
    fs::write(folder.path().join("b.h"), "int x;\n").unwrap();
    build(&[]).unwrap();
    assert_eq!(calls(), 4, "a header changed");
    build(&["-lineinfo"]).unwrap();
    assert_eq!(calls(), 7, "the options changed");

    fs::write(&sources[2], "bad\n").unwrap();
    let error = build(&["-lineinfo"]).unwrap_err();
    assert!(error.contains("c.cu") && error.contains("bad is not a type"), "{error}");
    fs::write(&sources[2], "good\n").unwrap();
    build(&["-lineinfo"]).unwrap();
    assert_eq!(fs::read_to_string(&fatbins[2]).unwrap(), "good\n");
}
