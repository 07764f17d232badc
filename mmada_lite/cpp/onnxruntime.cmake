# The target onnxruntime::onnxruntime: from onnxruntime's own CMake package where there is one, else from ONNXRUNTIME_INCLUDE_DIR (the
# folder of onnxruntime_cxx_api.h) and ONNXRUNTIME_LIBRARY (a file), which are looked for in the usual places.
if(NOT TARGET onnxruntime::onnxruntime AND NOT ONNXRUNTIME_LIBRARY)
  find_package(onnxruntime CONFIG QUIET)
endif()
if(NOT TARGET onnxruntime::onnxruntime)
  find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_cxx_api.h PATH_SUFFIXES onnxruntime onnxruntime/core/session)
  find_library(ONNXRUNTIME_LIBRARY onnxruntime)
  if(NOT ONNXRUNTIME_INCLUDE_DIR OR NOT ONNXRUNTIME_LIBRARY)
    message(FATAL_ERROR "onnxruntime is not here; set ONNXRUNTIME_INCLUDE_DIR (the folder of onnxruntime_cxx_api.h) and "
                        "ONNXRUNTIME_LIBRARY (the library's file), which `mmada-lite info --cpp` finds")
  endif()
  # A wheel's library carries its version in its name, and programs look for the name that it says of itself.
  get_filename_component(onnxruntime_file "${ONNXRUNTIME_LIBRARY}" NAME)
  get_filename_component(onnxruntime_folder "${ONNXRUNTIME_LIBRARY}" DIRECTORY)
  set(onnxruntime_location "${ONNXRUNTIME_LIBRARY}")
  if(onnxruntime_file MATCHES "^libonnxruntime\\.so\\.[0-9]+\\.[0-9]" AND NOT EXISTS "${onnxruntime_folder}/libonnxruntime.so.1")
    file(MAKE_DIRECTORY "${CMAKE_BINARY_DIR}/onnxruntime")
    set(onnxruntime_location "${CMAKE_BINARY_DIR}/onnxruntime/libonnxruntime.so.1")
    file(CREATE_LINK "${ONNXRUNTIME_LIBRARY}" "${onnxruntime_location}" SYMBOLIC)
  endif()
  add_library(onnxruntime::onnxruntime SHARED IMPORTED)
  set_target_properties(onnxruntime::onnxruntime PROPERTIES IMPORTED_LOCATION "${onnxruntime_location}"
                                                            INTERFACE_INCLUDE_DIRECTORIES "${ONNXRUNTIME_INCLUDE_DIR}")
endif()
